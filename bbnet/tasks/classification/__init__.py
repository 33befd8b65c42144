"""Image classification: data in CIFAR's layout or as a folder per class."""
