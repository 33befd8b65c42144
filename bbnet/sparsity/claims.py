"""Which object acts on a weight through the hooks of its optimiser, and whether anybody still holds that object."""

import warnings
import weakref
from collections.abc import Callable, Iterable, MutableMapping
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary


class Claims:
    """The claims of one kind of object, such as sparsifiers, to weights.

    Args:
        kind: the name of that kind, for messages.
        release: removes an object whose caller has dropped it.
    """

    def __init__(self, kind: str, release: Callable[[Any], None]) -> None:
        self._kind = kind
        self._release = release
        self._of: MutableMapping[Tensor, Claim] = WeakIdKeyDictionary()

    def __contains__(self, weight: Tensor) -> bool:
        return weight in self._of

    def add(self, weights: Iterable[Tensor], held: Any, attached: Any) -> "Claim":
        """Returns a new claim to `weights`, which lasts until its `remove` is called.

        Args:
            held: the object that the caller holds.
            attached: the one that the hooks hold, with `step` and `is_attached`.
        """
        claim = Claim(self._of, held, attached)
        for weight in weights:
            self._of[weight] = claim
        return claim

    def release_dropped(self, weights: Iterable[Tensor]) -> None:
        """Removes the objects of weights whose callers have dropped them, as a notebook's cell that runs again does."""
        for claim in [self._of[weight] for weight in weights if weight in self._of]:
            attached = claim.attached()
            if claim.held() is None and attached is not None and attached.is_attached:
                warnings.warn(
                    f"a {self._kind} of this model, at step {attached.step}, is removed, because nothing holds it any "
                    "more",
                    stacklevel=5,
                )
                self._release(attached)


class Claim:
    """The claim of one object to its weights."""

    def __init__(self, claims: MutableMapping[Tensor, "Claim"], held: Any, attached: Any) -> None:
        self._claims = claims
        self.held, self.attached = weakref.ref(held), weakref.ref(attached)

    def remove(self) -> None:
        for weight in [weight for weight, claim in self._claims.items() if claim is self]:
            del self._claims[weight]


SPARSIFIERS = Claims("sparsifier", lambda sparsifier: sparsifier.remove())
BINARIZERS = Claims("binarizer", lambda binarizer: binarizer.release())
