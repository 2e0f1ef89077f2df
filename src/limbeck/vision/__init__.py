"""Methods for image classifiers: logits, features, relations, and how training is arranged."""
