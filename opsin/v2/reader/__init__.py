"""Readers: functions that return a new iterator of samples."""
