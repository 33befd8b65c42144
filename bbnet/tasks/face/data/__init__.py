"""Face data: a pack in the face pack's layout, its images as arrays, batches of these."""
