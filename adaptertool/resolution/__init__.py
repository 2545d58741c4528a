"""Which tensor of a checkpoint is meant: modules to tensors, and tensors of two checkpoints to each other."""
