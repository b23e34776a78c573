"""Journals: the port, and its adapters for Kafka and for memory."""
