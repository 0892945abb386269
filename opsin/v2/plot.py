"""Curves drawn while a training runs."""
