"""What every room stands on: shapes, checks, registries, states; it imports from no other room."""
