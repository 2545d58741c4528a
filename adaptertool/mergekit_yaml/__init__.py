"""Merges as mergekit's YAML says them: read strictly, planned as our own, and written by the same engine."""
