"""Plain PyTorch models: where slabs are in one, and how a sparsified one becomes plain again. No training uses it."""
