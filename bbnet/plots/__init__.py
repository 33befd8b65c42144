"""How it looks: one file per figure, one shared style. Reads the summary only."""
