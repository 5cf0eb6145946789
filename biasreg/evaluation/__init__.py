"""Measuring and showing how well pairs were registered."""
