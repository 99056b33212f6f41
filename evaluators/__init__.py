"""Loads datasets, finds and grades answers, and makes reports."""
