"""Pages and tables made from cards and stored runs; imports no torch."""
