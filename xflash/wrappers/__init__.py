"""Whole models around a stack, one file each."""
