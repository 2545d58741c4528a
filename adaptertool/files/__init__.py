"""Bytes on disk: strict headers and indexes, block reads, shard writes, atomic publishing."""
