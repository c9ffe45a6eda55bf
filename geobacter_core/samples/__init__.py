"""Triplets: anchor, near and far places, split into train and test by blocks of ground."""
