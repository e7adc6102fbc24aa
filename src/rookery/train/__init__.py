"""From nothing to a model: data, order, optimiser, checkpoints and the loop, by the reference recipe."""
