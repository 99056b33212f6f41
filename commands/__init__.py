"""The commands, and what they share: options, settings files, the screen, and errors."""
