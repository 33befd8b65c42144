from bbnet.sparsity.parameters import SparseFromStartParameters as Parameters

__all__ = ["Parameters"]
