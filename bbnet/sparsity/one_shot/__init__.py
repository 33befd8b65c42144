"""One-shot pruning: a trained model is pruned once, layer by layer, by what its layers do on calibration inputs."""
