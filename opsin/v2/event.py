"""What a training tells its event handler."""
