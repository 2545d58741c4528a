"""Recipes: commands and what they are given, as data."""
