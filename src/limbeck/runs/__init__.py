"""What surrounds a method's run: the front door, what is measured after it, what is taken home."""
