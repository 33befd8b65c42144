"""All connections stay: the reference of every comparison."""

from bbnet.sparsity.algorithms import Algorithm


class Dense(Algorithm):
    """One uninterrupted dense training."""
