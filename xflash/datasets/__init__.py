"""Data for the examples and tests, fetched or made."""
