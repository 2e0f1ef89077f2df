"""Methods for causal language models and encoders of text."""
