"""Watches the streams: windows, alert rules, sinks."""
