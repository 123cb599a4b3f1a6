"""The quality of generated images."""
