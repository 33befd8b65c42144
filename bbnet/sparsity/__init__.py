"""Sparsification: slabs, on-rates, degrees, masks, the schedule, and the sparsifier that combines them."""
