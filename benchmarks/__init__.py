"""Benchmarks on simulated, empty or real engines: each makes a report of the same form (``report``)."""
