"""What multiplies the update of a branch, by name."""
