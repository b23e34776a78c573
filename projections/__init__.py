"""Pure state that the stream processors drive: no network, no clock."""
