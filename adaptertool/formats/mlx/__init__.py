"""Adapters as mlx-lm trains them."""
