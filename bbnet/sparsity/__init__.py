"""What is kept: slabs, on-rates, degrees, masks, schedule, and the sparsifier that joins them."""
