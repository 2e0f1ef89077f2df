"""What every method stands on: card, method, sides, task, engine and run."""
