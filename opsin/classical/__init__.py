"""The pipeline of before 2012: descriptors, a vocabulary, encoding, spatial pooling, and a classifier of vectors."""
