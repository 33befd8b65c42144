"""Reads a pack in the layout of the face pack, prepares its images as arrays, and serves batches of them."""
