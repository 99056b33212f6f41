"""Where model weights are, and how they get there."""
