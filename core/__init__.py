"""What all rooms stand on: errors, names, settings, protocols, ports and their adapters."""
