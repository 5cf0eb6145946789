"""Differentiable mathematics of displacement fields."""
