"""One track at work: its verbs, and what they ask of engines."""
