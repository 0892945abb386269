"""From declarations to a torch module."""
