"""Pictures as NumPy arrays: reading, resizing, cropping."""
