"""Groups of layers that programs use as one."""
