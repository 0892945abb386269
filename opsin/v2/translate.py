"""Python 2 programs, run on Python 3."""
