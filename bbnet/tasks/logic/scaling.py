"""How fast networks of different widths learn a formula: the level that counts as learned, and what is compared."""

from collections.abc import Mapping
from typing import Any

LEVEL = 0.99  # of the selection metric on dev, to which training steps are counted


def scaled(model: Mapping[str, Any]) -> tuple[str, int]:
    """Returns the formula that a model learns, and its width, that of the first hidden layer, from its settings."""
    return model["formula"], model["widths"][0]
