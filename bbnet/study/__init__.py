"""The study: its configuration, its grid of runs, and the record of each run. Nothing here imports torch."""
