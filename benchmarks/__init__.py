"""Benchmarks: each makes a report of one form (``report``), on simulated, empty or real engines."""
