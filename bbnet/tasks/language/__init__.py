"""Language modelling: text in folders, a causal decoder, perplexity by Head, Mid and Tail."""
