"""Boston housing."""
