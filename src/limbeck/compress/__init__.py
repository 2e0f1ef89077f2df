"""Methods that choose, prune, share or quantise the student itself."""
