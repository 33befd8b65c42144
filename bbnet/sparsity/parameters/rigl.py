from bbnet.sparsity.parameters import DropAndGrowParameters as Parameters

__all__ = ["Parameters"]
