"""Records and files: errors, geometry, datasets, images, transforms. Imports no torch."""
