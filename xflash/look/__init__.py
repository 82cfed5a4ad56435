"""Looking at models: what is in them, what they do with a text, how they differ, and pictures of it."""
