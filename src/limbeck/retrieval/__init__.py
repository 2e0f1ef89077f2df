"""Methods for embeddings, rankers and search."""
