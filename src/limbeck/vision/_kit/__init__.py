"""What the vision room's methods and its maker of tasks share."""
