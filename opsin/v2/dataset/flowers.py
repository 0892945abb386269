"""The 102 flowers."""
