"""Does everything that waits: engines, tracks, scheduling, traces and replays."""
