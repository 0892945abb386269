"""The cache of downloaded archives."""
