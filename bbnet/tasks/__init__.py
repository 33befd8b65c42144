"""The tasks. A task is a folder with `settings` and `metrics` (without torch), `data`, `model` and `task`."""
