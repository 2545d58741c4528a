"""Judging a checkpoint that any tool may have made, tensor by tensor, against what it should hold."""
