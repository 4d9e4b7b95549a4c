"""Pure functions on arrays and tensors: partition, values, advantages, losses, statistics."""
