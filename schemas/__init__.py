"""Avro schemas: one file per event or command; the typed records beside them are generated."""
