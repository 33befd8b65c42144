"""What goes on inside a model: gradient flow in any training loop (`watch`), and probes of its layers (`probe`)."""
