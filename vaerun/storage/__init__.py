"""Files: written whole, locked, and read without trusting them."""
