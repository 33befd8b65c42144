"""Reads packs in CIFAR's layout or with a folder per class, prepares arrays, and serves batches of them."""
