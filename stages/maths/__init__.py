"""Pure functions on arrays and tensors: partitions, values, advantages, losses, statistics."""
