"""Methods that learn representations without labels."""
