from bbnet.sparsity.parameters import AlgorithmParameters as Parameters
