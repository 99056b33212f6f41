"""Everything that decides: no I/O, no clock, no global random state."""
