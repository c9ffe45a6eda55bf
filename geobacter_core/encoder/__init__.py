"""The encoder: window to embedding. Network, loss, training data, training, evaluation and the registry."""
