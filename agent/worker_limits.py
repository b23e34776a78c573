"""Limits that control process and worker must agree on."""

CHECKPOINT_SECONDS_MAX = 10.0
"""How long markers may take to be acked; then the checkpoint is void (points are still there, unnamed)."""
