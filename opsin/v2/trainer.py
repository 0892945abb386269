"""SGD: the trainer of the v2 API, over the one training loop."""
