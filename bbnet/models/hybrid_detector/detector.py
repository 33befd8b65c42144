"""The hybrid detector as a whole, its slabs, and which of its weights must not decay."""

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from bbnet.models.hybrid_detector.backbone import Backbone, SplitBlock
from bbnet.models.hybrid_detector.decoder import Decoder
from bbnet.models.hybrid_detector.denoising import DenoisingQueries, group_mask
from bbnet.models.hybrid_detector.encoder import Encoder, Proposals
from bbnet.models.hybrid_detector.layers import FeedForward, draw_by_name, new_seed
from bbnet.models.hybrid_detector.neck import Neck
from bbnet.models.hybrid_detector.outputs import Denoising, Output, Predictions, Targets
from bbnet.models.hybrid_detector.reversible import ReversibleBranch
from bbnet.models.settings import hybrid_detector as kinds
from bbnet.sparsity.slab import Slab

IN_EVALUATION = ("backbone", "neck", "encoder", "proposals", "decoder")


class HybridDetector(nn.Module):
    """Predicts boxes and their classes, see `forward`.

    Initial weights depend on torch's global generator and on the name of their module alone, so networks that differ in
    flags have the same weights wherever they have the same modules.

    Args:
        settings: sizes and flags.
        classes: number of classes, without one for background.
    """

    def __init__(self, settings: kinds.HybridDetector, classes: int) -> None:
        super().__init__()
        seed = new_seed()
        sizes, rated = settings.size, settings.iou_scoring
        strides = kinds.strides(sizes)[-sizes.levels :]
        channels = [stage.width for stage in sizes.stages[-sizes.levels :]]
        self.backbone = Backbone(settings)
        self.neck = Neck(channels, sizes.width, sizes.rounds)
        self.encoder = Encoder(sizes)
        self.proposals = Proposals(sizes.width, classes, sizes.queries, rated)
        self.decoder = Decoder(sizes, classes, rated)
        self.denoising = DenoisingQueries(classes, sizes.width, settings.denoising) if settings.denoising else None
        self.strides = strides
        self.reversible = None
        if settings.reversible_branch:
            self.reversible = ReversibleBranch(strides, channels, sizes.width, classes, sizes.queries, rated)
        draw_by_name(self, seed)

    def forward(self, images: Tensor, targets: Targets | None = None) -> Output | Predictions:
        """Maps images [batch, 3, height, width], normalised, to the boxes of each image; see `Output`.

        Height and width may be any; boxes are exact if both are multiples of the coarsest stride. The number of queries
        is that of the settings, but at most that of the tokens of all levels. Targets are read in training mode, if
        there is denoising; they do not change the predictions of the other queries.
        """
        levels = self.backbone(images)
        maps = self.encoder(self.neck(levels))
        proposed = self.proposals(maps)
        if not self.training:
            return self.decoder(proposed.states, proposed.boxes, maps, None)[-1]
        own, noisy = self._decoded(proposed.states, proposed.boxes, maps, targets)
        auxiliary = {"proposals": proposed.all}
        auxiliary |= {f"decoder.{number}": layer for number, layer in enumerate(own[:-1])}
        if self.reversible is not None:
            auxiliary["reversible"] = self.reversible(images, levels)
        return Output(own[-1], auxiliary, noisy)

    def own_queries(self, images: Tensor, targets: Targets | None) -> Tensor | None:
        """Returns which queries of the decoder are not noised objects, bool [batch, queries]; None if all are."""
        if not self.training or not self._denoises(targets):
            return None
        height, width = images.shape[2:]
        tokens = sum(-(-height // stride) * -(-width // stride) for stride in self.strides)
        noised, own = 2 * self.denoising.groups * targets.labels.shape[1], min(self.proposals.queries, tokens)
        return (torch.arange(noised + own, device=images.device) >= noised).expand(len(images), -1)

    def _denoises(self, targets: Targets | None) -> bool:
        return self.denoising is not None and targets is not None and targets.labels.shape[1] > 0

    def _decoded(
        self, states: Tensor, references: Tensor, maps: list[Tensor], targets: Targets | None
    ) -> tuple[list[Predictions], Denoising | None]:
        """Returns the predictions of all layers for the proposals, and those for noised objects, if there are any."""
        if not self._denoises(targets):
            return self.decoder(states, references, maps, None), None
        noised_states, noised_boxes = self.denoising(targets)
        count, groups = noised_states.shape[1], self.denoising.groups
        allowed = group_mask(targets.labels, groups, states.shape[1])
        states = torch.cat([noised_states.to(states.dtype), states], dim=1)
        references = torch.cat([noised_boxes.to(references.dtype), references], dim=1)
        layers = self.decoder(states, references, maps, allowed)
        noisy = tuple(_part(layer, slice(0, count)) for layer in layers)
        return [_part(layer, slice(count, None)) for layer in layers], Denoising(noisy, groups)


def deployed(network: HybridDetector) -> HybridDetector:
    """Returns the network without what training alone calls: the reversible branch and the queries for noised objects.

    Everything else is shared with `network`, which keeps these parts.
    """
    bare = copy.copy(network)
    bare._modules = dict(network._modules)  # a shallow copy has the dictionary of the original
    bare.reversible = bare.denoising = None
    return bare


def _part(predictions: Predictions, queries: slice) -> Predictions:
    return type(predictions)(*(each[:, queries] for each in predictions))


def slabs(
    network: HybridDetector, which: kinds.Which, side: Literal["in", "out", "both"], prefix: str = ""
) -> list[Slab]:
    """Returns the slabs of the network; names begin with the part: backbone, neck, encoder, proposals or decoder.

    `ffn` selects the feed-forward layers of the backbone's blocks, the encoder and the decoder. `wide` adds those that
    refine boxes and embed them, and the 1x1 projections that an activation follows: those into the neck, and those at
    the end of cross-stage partial blocks. Projections of attention and of deformable convolutions are never slabs, nor
    is anything that evaluation does not call.

    The units are the hidden units, and the outputs of the projections, with on-rates after their own activation. Side
    `in` masks their inputs, side `out` the outputs of hidden units; `both` has the slabs of both.

    Args:
        prefix: what stands before the names of the network's modules in those of the whole model, such as `network.`.
    """
    found: list[Slab] = []
    for part in IN_EVALUATION:
        found += slabs_of_part(getattr(network, part), which, f"{prefix}{part}.")
    if which == "wide":
        levels = range(len(network.neck.lateral))
        neck = f"{prefix}neck"
        found += [Slab(f"{neck}.lateral.{level}", "in", f"{neck}.norm.{level}") for level in levels]
    return [slab for slab in found if side in (slab.side, "both")]


def slabs_of_part(part: nn.Module, which: kinds.Which, prefix: str) -> list[Slab]:
    """Returns the slabs, of both sides, of the feed-forward layers and of the cross-stage partial blocks of a part."""
    found: list[Slab] = []
    for name, module in part.named_modules():
        place = f"{prefix}{name}"
        if isinstance(module, FeedForward) and (which == "wide" or name.endswith(".ffn")):
            units = f"{place}.expand"
            found.append(Slab(units, "in", units))
            if module.factor is not None:
                found.append(Slab(f"{place}.factor", "in", units))
            found.append(Slab(f"{place}.contract", "out", units))
        elif which == "wide" and isinstance(module, SplitBlock):
            found.append(Slab(f"{place}.merge", "in", f"{place}.norm"))
    return found


def without_decay(model: nn.Module) -> list[nn.Parameter]:
    """Returns the parameters that weight decay must not act on: all but the weights of linear layers and convolutions.

    So norms, biases, LayerScale, embeddings, tables of biases by distance and the gates of flags do not decay.
    """
    decayed = {id(each.weight) for each in model.modules() if isinstance(each, nn.Linear | nn.Conv2d)}
    return [each for each in model.parameters() if id(each) not in decayed]
