"""From a pair of images to a displacement field on disk."""
