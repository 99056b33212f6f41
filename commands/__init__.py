"""The commands in groups, with what they share: their settings, the screen, and how errors are told."""
