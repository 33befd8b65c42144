"""Draws the figures from the tables of the summary, one module per figure."""
