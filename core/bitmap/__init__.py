"""Dirty bitmaps, acks and leases: the port, and its adapters for Redis and for memory."""
