"""What a data layer is fed with."""
