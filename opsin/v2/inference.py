"""Outputs of a trained network for given samples."""
