"""Curves over α whose every checkpoint is scored: the program that scores, the points, the run."""
