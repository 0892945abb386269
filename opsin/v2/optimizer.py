"""Paddle's update rules and learning-rate schedules."""
