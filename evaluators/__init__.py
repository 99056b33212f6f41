"""Datasets, answers and their grading, reports."""
