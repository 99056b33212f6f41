"""Writes, reads, checks and upgrades the trace of a run on disk."""
