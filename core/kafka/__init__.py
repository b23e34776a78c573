"""Kafka as this project uses it: one-partition topics, read and written by offset, everything bounded.

Built on aiokafka's connections, request types and record batches, below its producer and consumer: those
retry for ever behind their caller's back, which is what a journal writer with an unknown outcome must not do.
"""
