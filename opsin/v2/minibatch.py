"""From a reader of samples to a reader of mini-batches."""
