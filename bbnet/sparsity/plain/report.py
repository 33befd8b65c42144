"""Reports on a search for slabs: what was found and what was skipped, as text."""

from collections.abc import Iterator, Mapping, Sequence

from torch import nn
from torch.nn.parameter import is_lazy

from bbnet.sparsity.slab import Slab, layer_shape, unwrap


def report(model: nn.Module, slabs: Sequence[Slab], skipped: Mapping[str, str]) -> str:
    """Returns two tables, the slabs and the layers that were skipped, with the share that the slabs cover.

    Args:
        skipped: the reason by name of the layer.
    """
    shown = [("layer", "side", "units", "shape [units x fan]")]
    layers = {slab: unwrap(model).get_submodule(slab.name) for slab in slabs}
    for slab, layer in layers.items():
        units, fan = layer_shape(layer, slab.side)
        shown.append((slab.name, slab.side, ", ".join(slab.units), f"{units} x {fan}"))
    covered = sum(layer.weight.numel() for layer in layers.values())
    total = sum(each.numel() for each in model.parameters() if not is_lazy(each))
    share = f"The slabs hold {covered:,} of {total:,} parameters ({100 * covered / total:.1f} %)." if total else ""
    return "\n".join(
        (
            *_columns(shown),
            share,
            "",
            *_columns([("skipped", "reason"), *((_shown(name), reason) for name, reason in skipped.items())]),
        )
    )


def seen(skipped: Mapping[str, str]) -> str:
    """Returns the layers that were skipped, by reason; of each, the first three names."""
    names: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        names.setdefault(reason, []).append(_shown(name))
    parts = []
    for reason, layers in names.items():
        more = f" and {len(layers) - 3} more" if len(layers) > 3 else ""
        parts.append(f"{', '.join(layers[:3])}{more}: {reason}")
    return f"; skipped were {'; '.join(parts)}" if parts else ", which has no layer with weights"


def _shown(name: str) -> str:
    return name or "the model itself"


def _columns(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
