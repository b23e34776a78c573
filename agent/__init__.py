"""The RepAgent: captures, journals, reads for sync; `docs/agent.md`."""
