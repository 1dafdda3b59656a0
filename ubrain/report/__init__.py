"""Notebooks, their runs, numbers, claims and figures."""
