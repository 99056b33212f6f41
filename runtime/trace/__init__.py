"""The trace of a run on disk: what is written, read, checked and upgraded."""
