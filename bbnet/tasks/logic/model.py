"""The multilayer perceptron and its slabs."""

from itertools import pairwise

from torch import Tensor, nn

from bbnet.sparsity.slab import Slab
from bbnet.tasks.logic.settings import FORMULAS, Perceptron


class MultilayerPerceptron(nn.Module):
    """Hidden layers with ReLU, and a linear layer with the logit of one formula.

    Attributes:
        label: which column of the labels the network learns.
    """

    def __init__(self, settings: Perceptron, bits: int) -> None:
        super().__init__()
        self.label = FORMULAS.index(settings.formula)
        sizes = [bits, *settings.widths]
        self.hidden = nn.ModuleList(nn.Linear(inputs, outputs) for inputs, outputs in pairwise(sizes))
        self.last = nn.Linear(sizes[-1], 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps inputs of 0 and 1, [batch, bits], to logits [batch]."""
        values = 2.0 * inputs - 1
        for layer in self.hidden:
            values = layer(values).relu()
        return self.last(values)[:, 0]


def slabs(model: MultilayerPerceptron, which: str, side: str) -> list[Slab]:
    """Returns the matrices of the hidden layers as slabs.

    On side `in` the units of a layer own the rows of its matrix, on side `out` the columns of the next hidden layer's.
    `both` are the matrices of the first, third, ... hidden layer by `in`, and the others by `out`.
    """
    layers = [f"hidden.{number}" for number in range(len(model.hidden))]
    rows = [Slab(layer, "in", units=layer) for layer in layers]
    columns = [Slab(after, "out", units=before) for before, after in pairwise(layers)]
    return {"in": rows, "out": columns, "both": [*rows[::2], *columns[::2]]}[side]
