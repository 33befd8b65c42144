"""Finds documents, makes tokens of them, scores the 5-gram floor, and serves windows of tokens."""
