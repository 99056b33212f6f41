"""Describes this machine, and computes what fits on it."""
