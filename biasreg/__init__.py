"""Self-configuring, weakly-supervised deformable registration of 3-D medical images."""

__version__ = "0.1.0"
