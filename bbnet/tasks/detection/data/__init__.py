"""Reads packs in the layout of VOC, prepares arrays of images and boxes, and serves batches of them."""
