"""What language models need in whatever room: places, views, texts, generation."""
