"""Weights of one bit: BinaryConnect as a wrapper-free addition to a training loop, alone or with `bbnet.sparsity`."""
