"""How: the training loop, its checkpoints, seeds and devices."""
