"""Kafka: jars, broker start, topic definitions, compose file."""
