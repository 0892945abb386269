"""The modules whose arithmetic is Paddle's."""
