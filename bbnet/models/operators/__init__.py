"""Attention and convolution at chosen places, in plain PyTorch: no compiled extension is needed on any device.

Maps are [batch, height, width, channels] throughout, so that a linear layer is a 1x1 convolution.
"""
