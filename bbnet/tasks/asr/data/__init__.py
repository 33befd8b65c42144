"""Reads a corpus in the layout of LibriSpeech, prepares its features and tokens, and serves batches of them."""
