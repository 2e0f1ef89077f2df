"""Methods for models of several modalities: pictures with sound or text, sensors of two kinds."""
