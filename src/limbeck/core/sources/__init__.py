"""What a user names on a command line, models and data, and what it becomes."""
