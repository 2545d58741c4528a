"""Plans, made from headers and configs alone: what becomes of every tensor of the output."""
