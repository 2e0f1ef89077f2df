"""Pure functions of tensors, filed by kind."""
