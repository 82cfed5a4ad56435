"""What a branch reads of the stream, by name."""
