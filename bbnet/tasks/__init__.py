"""What is learned. A task is a folder: `settings` (no torch), `data`, `model`, `metrics` (no torch) and `task`."""
