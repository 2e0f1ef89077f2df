"""Methods for scenes in three dimensions and for physics."""
