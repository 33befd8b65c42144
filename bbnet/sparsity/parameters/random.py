from bbnet.sparsity.parameters import SparseFromStartParameters as Parameters
