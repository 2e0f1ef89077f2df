"""Methods for speech and sound."""
