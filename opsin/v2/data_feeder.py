"""From rows of samples to the tensors of the data layers."""
