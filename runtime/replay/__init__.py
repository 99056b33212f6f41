"""Drives loops again over a trace: resume, replay and what-if."""
