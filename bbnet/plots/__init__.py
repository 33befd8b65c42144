"""Draws the figures, one module per figure, from the summary only."""
