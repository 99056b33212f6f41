"""Loops driven again over a trace: resume, replay and what-if."""
