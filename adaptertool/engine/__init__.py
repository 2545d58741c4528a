"""Runs plans: what they cost, what they read first, threads, and the writing of each shard."""
