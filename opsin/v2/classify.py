"""What was trained through v2, as a classifier like any other."""
