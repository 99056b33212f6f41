"""Engines that are servers elsewhere, behind the same protocol as one in this process."""
