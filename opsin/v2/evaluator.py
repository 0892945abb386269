"""Metrics: declared beside the layers, accumulated on tensors."""
