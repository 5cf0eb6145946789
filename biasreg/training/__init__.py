"""Fitting BIASNet to one fold."""
