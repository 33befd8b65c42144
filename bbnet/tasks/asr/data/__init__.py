"""From a corpus in LibriSpeech's layout to batches: one room per step."""
