"""Dense training, which prunes nothing: the baseline of every comparison."""

from bbnet.sparsity.algorithms import Algorithm


class Dense(Algorithm):
    """Keeps all connections."""
