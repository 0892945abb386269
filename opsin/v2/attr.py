"""What can be said about a parameter or a layer besides its shape."""
