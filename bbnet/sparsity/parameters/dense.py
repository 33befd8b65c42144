from bbnet.sparsity.parameters import AlgorithmParameters as Parameters

__all__ = ["Parameters"]
