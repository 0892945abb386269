"""Readers made of readers."""
