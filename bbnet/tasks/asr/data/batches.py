"""Serves batches of about equal duration, made of utterances of similar length to limit padding and shapes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bbnet.data.store import open_array
from bbnet.tasks import batches
from bbnet.tasks.asr.data.corpus import SPLITS
from bbnet.tasks.asr.data.features import FRAMES_PER_SECOND, positions
from bbnet.tasks.asr.data.tokens import EOS, PAD, load_tokeniser
from bbnet.tasks.asr.settings import CLASS_RATIO, Decoding, SpecAugment, SpeechTraining

EVALUATION_FRAMES = 20_000


@dataclass(frozen=True)
class Batch(batches.Batch):
    """`features` float32 [batch, time, 80], `frames` int64 [batch], `tokens` int64 [batch, length], `counts` [batch].

    Features are padded with 0, tokens with `PAD`.
    """

    features: Tensor
    frames: Tensor
    tokens: Tensor
    counts: Tensor

    def decoder_inputs(self) -> Tensor:
        """Returns `EOS` followed by the tokens, [batch, 1 + length]."""
        return torch.nn.functional.pad(self.tokens, (1, 0), value=EOS)

    def labels(self) -> Tensor:
        """Returns the tokens followed by `EOS`, [batch, 1 + length]."""
        padded = torch.nn.functional.pad(self.tokens, (0, 1), value=PAD)
        return padded.scatter(1, self.counts[:, None], EOS)

    def valid(self) -> dict[str, Tensor]:
        """Returns masks of the positions of the encoder and of the decoder that are not padding."""
        encoder = torch.arange(positions(self.features.shape[1]), device=self.frames.device)
        decoder = torch.arange(self.tokens.shape[1] + 1, device=self.frames.device)
        return {"encoder": encoder < positions(self.frames)[:, None], "decoder": decoder <= self.counts[:, None]}


class Utterances:
    """A split of the prepared data.

    Attributes:
        keys, texts: key and normalised text of each utterance.
        other: int8 [utterances], 1 for utterances of test-other.
        frames, counts: int64 [utterances], on the CPU; number of frames and of tokens.
        longest: largest number of tokens of a reference.
        buckets: word -> Head, Mid or Tail, if the index contains them.
        decoding: settings of decoding; greedy if the index contains none.
    """

    ARRAYS = ("features", "tokens", "starts", "token_starts")

    def __init__(self, prepared: Path, index: Mapping[str, Any], split: str) -> None:
        sizes = {name: len(index["splits"][name]["utterances"]) for name in SPLITS}
        first = sum(size for name, size in sizes.items() if list(SPLITS).index(name) < list(SPLITS).index(split))
        rows = slice(first, first + sizes[split] + 1)
        self.features, self.starts = _part(prepared / "features.npy", prepared / "starts.npy", rows)
        self.tokens, self.token_starts = _part(prepared / "tokens.npy", prepared / "token_starts.npy", rows)
        self.frames = self.starts.diff()
        self.counts = self.token_starts.diff()
        # All batches of a class are padded to one shape, because memory and kernels are cached and compiled per shape.
        self._class_of = (self.frames.double().log() / np.log(CLASS_RATIO)).floor()
        self._class_shapes = {
            value: (int(self.frames[members].max()), max(1, int(self.counts[members].max())))
            for value, members in self._members().items()
        }
        self.keys: list[str] = index["splits"][split]["utterances"]
        self.texts: list[str] = index["splits"][split]["texts"]
        folders = [count for _, count in index["splits"][split]["folders"]]
        self.other = np.repeat(np.arange(len(folders), dtype=np.int8), folders)
        self.longest = int(self.counts.max())
        self.buckets: Mapping[str, str] | None = index.get("buckets")
        self.decoding = Decoding(**index.get("decoding", {}))
        self.tokeniser = load_tokeniser(prepared, index)

    def __len__(self) -> int:
        return len(self.frames)

    def batch(self, indices: Tensor, device: torch.device) -> Batch:
        # Padded to the largest shape of its classes.
        shapes = [self._class_shapes[value] for value in self._class_of[indices].unique().tolist()]
        time, length = map(max, zip(*shapes, strict=True))
        rows = indices.to(self.starts.device, non_blocking=True)
        features, frames = _padded(self.features, self.starts, rows, time, 0.0)
        tokens, counts = _padded(self.tokens, self.token_starts, rows, length, PAD)
        return Batch(features, frames, tokens.long(), counts).to(device)

    def steps_per_epoch(self, training: SpeechTraining) -> int:
        return sum(-(-len(members) // size) for members, size in self._classes(training))

    def batches(self, training: SpeechTraining, generator: torch.Generator) -> list[Tensor]:
        """Returns the indices of each batch; utterances are shuffled within classes of similar length, then batches.

        A batch including its padding is no longer than `batch_seconds`, unless it is a single utterance. The number of
        batches and their sizes are the same in every epoch.
        """
        batches = []
        for members, size in self._classes(training):
            order = torch.randperm(len(members), generator=generator)
            batches += members[order].split(size)
        return [batches[place] for place in torch.randperm(len(batches), generator=generator)]

    def in_order(self) -> list[Tensor]:
        """Returns the indices of every utterance once, sorted by length, in batches for evaluation."""
        by_length = torch.argsort(self.frames, stable=True)
        batches, first = [], 0
        while first < len(by_length):
            # Utterances are sorted by length, so the last one determines the padding of the batch.
            last = first + 1
            while last < len(by_length) and (last + 1 - first) * int(self.frames[by_length[last]]) <= EVALUATION_FRAMES:
                last += 1
            batches.append(by_length[first:last])
            first = last
        return batches

    def _classes(self, training: SpeechTraining) -> list[tuple[Tensor, int]]:
        """Returns the members of each class of similar length, with the batch size of the class."""
        budget = training.batch_seconds * FRAMES_PER_SECOND
        sizes = {value: max(1, int(budget // time)) for value, (time, _) in self._class_shapes.items()}
        return [(members, sizes[value]) for value, members in self._members().items()]

    def _members(self) -> dict[float, Tensor]:
        return {value: torch.nonzero(self._class_of == value).flatten() for value in self._class_of.unique().tolist()}


def _part(values: Path, starts: Path, utterances: slice) -> tuple[Tensor, Tensor]:
    """Returns the memory-mapped rows of these utterances, and the start of each utterance among them."""
    places = np.load(starts)[utterances]
    return torch.from_numpy(open_array(values)[places[0] : places[-1]]), torch.from_numpy(places - places[0])


def _padded(values: Tensor, starts: Tensor, rows: Tensor, length: int, padding: float) -> tuple[Tensor, Tensor]:
    """Returns the values of the utterances `rows`, padded to [batch, length, ...], and their numbers of values."""
    first = starts[rows]
    counts = starts[rows + 1] - first
    within = torch.arange(length, device=values.device)
    inside = within < counts[:, None]
    if not len(values):  # all texts are empty
        return values.new_full(inside.shape, padding), counts
    padded = values[torch.where(inside, first[:, None] + within, 0)]
    return padded.masked_fill_(~inside.reshape(*inside.shape, *(1,) * (values.dim() - 1)), padding), counts


def spec_augment(batch: Batch, settings: SpecAugment, generator: torch.Generator) -> Batch:
    """Applies SpecAugment: sets random bins, and random frames within the length of each utterance, to 0."""
    bins = batch.features.shape[2]
    most = batch.frames * settings.time_share / max(1, settings.time_masks)
    time = _masks(batch.frames, settings.time_masks, settings.time_width, most, batch.features.shape[1], generator)
    all_bins = torch.full_like(batch.frames, bins)
    frequency = _masks(all_bins, settings.frequency_masks, settings.frequency_width, all_bins, bins, generator)
    covered = time[:, :, None] | frequency[:, None, :]
    return replace(batch, features=batch.features.masked_fill(covered, 0.0))


def _masks(lengths: Tensor, count: int, width: int, most: Tensor, places: int, generator: torch.Generator) -> Tensor:
    """Returns bool [batch, places], true in `count` spans within `lengths`, below `width` and at most `most` wide."""
    draws = torch.rand(2, len(lengths), count, 1, generator=generator, device=lengths.device)
    widths = torch.minimum((draws[0] * width).floor(), most.floor()[:, None, None])
    starts = (draws[1] * (lengths[:, None, None] - widths + 1)).floor()
    place = torch.arange(places, device=lengths.device)
    return ((place >= starts) & (place < starts + widths)).any(1)
