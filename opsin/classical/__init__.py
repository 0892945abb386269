"""The pipeline before 2012: descriptors → vocabulary → codes → spatial pooling → classifier, batched in torch."""
