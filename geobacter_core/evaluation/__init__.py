"""What an encoder is worth: probes on labels it never saw, baselines on the same folds, and how its vectors lie."""
