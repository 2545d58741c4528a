"""Rows of a stored tensor as numbers, and numbers as what is stored."""
