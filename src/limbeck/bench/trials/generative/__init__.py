"""Trials of the methods in the room generative."""
