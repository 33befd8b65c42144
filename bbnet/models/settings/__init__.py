"""The sizes of the networks, for the settings of tasks. Nothing here imports torch."""
