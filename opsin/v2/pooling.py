"""How a pooling layer joins its window."""
