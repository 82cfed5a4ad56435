"""Experiments: variants of a model trained side by side, and what came of them."""
