"""Runs one track: its verbs and the requests that they send."""
