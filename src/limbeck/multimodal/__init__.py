"""Methods for models of pictures and text together."""
