"""Methods for learning one task after another without forgetting."""
