"""Finds and fetches model weights."""
