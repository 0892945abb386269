"""One function a layer: a declaration, its sizes computed at once."""
