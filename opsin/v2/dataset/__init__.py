"""The published data sets, as readers."""
