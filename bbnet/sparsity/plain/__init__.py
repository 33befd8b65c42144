"""Plain PyTorch models: finding slabs in a model, and exporting a sparsified one. The study does not use it."""
