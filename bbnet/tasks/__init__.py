"""Tasks. Each is a package with the modules `settings` and `metrics` (without torch), `data`, `model` and `task`."""
