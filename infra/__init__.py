"""What RepHub stands on: broker, Redis, topics, child processes, files and ports of a local stack."""
