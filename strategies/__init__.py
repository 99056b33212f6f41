"""Decides everything: plans, loops, rules. No I/O, no clock, no global random state."""
