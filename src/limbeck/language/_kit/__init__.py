"""What the language room's methods and its maker of tasks share."""
