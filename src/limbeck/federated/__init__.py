"""Methods for learning from clients whose data stay with them."""
