"""Readers made of arrays and files."""
