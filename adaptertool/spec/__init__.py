"""The records that the others hand on to each other, as frozen data: tensors, adapters, plans, counts."""
