"""Benchmarks: each makes a report of one form (``figures``), on simulated, empty or real engines."""
