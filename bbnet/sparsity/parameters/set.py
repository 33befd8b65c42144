from bbnet.sparsity.parameters import DropAndGrowParameters as Parameters
