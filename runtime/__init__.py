"""Everything that waits: events, state, tracks, scheduler, journal."""
