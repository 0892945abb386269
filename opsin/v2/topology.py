"""A network cut out of everything declared: the layers that its outputs need."""
