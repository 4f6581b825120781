"""Training: the loop, its optimizers and losses, its checkpoints."""
