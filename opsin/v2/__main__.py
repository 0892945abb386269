"""Run an unmodified program of 2017: `python -m opsin.v2 train.py`."""
