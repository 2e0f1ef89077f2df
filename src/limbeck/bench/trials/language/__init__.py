"""Trials of the methods in the room language."""
