"""Turns a corpus in LibriSpeech's layout into batches."""
