"""A small synthetic anatomy, so that the main job runs anywhere with no download."""
