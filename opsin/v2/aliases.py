"""The names `paddle.v2`, `paddle.trainer_config_helpers` … made importable."""
