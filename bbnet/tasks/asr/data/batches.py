"""Batches by duration, of utterances of like length, so that padding is small and shapes are few."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bbnet.data.store import open_array
from bbnet.tasks.asr.data.corpus import SPLITS
from bbnet.tasks.asr.data.features import FRAMES_PER_SECOND, positions
from bbnet.tasks.asr.data.tokens import EOS, PAD, load_tokeniser
from bbnet.tasks.asr.settings import Decoding, SpecAugment, SpeechTraining

CLASS_RATIO = 1.15  # of the longest to the shortest utterance of a class: at most this much is padding
EVALUATION_FRAMES = 20_000


@dataclass(frozen=True)
class Batch:
    """`features` float32 [batch, time, 80], `frames` int64 [batch], `tokens` int64 [batch, length], `counts` [batch].

    Beyond an utterance's frames features are 0, beyond its tokens there is `PAD`.
    """

    features: Tensor
    frames: Tensor
    tokens: Tensor
    counts: Tensor

    def decoder_inputs(self) -> Tensor:
        """Tokens behind `EOS`, [batch, 1 + length]."""
        return torch.nn.functional.pad(self.tokens, (1, 0), value=EOS)

    def labels(self) -> Tensor:
        """Tokens and then `EOS`, [batch, 1 + length]."""
        padded = torch.nn.functional.pad(self.tokens, (0, 1), value=PAD)
        return padded.scatter(1, self.counts[:, None], EOS)

    def valid(self) -> dict[str, Tensor]:
        """Which positions of the encoder and of the decoder are no padding."""
        encoder = torch.arange(positions(self.features.shape[1]), device=self.frames.device)
        decoder = torch.arange(self.tokens.shape[1] + 1, device=self.frames.device)
        return {
            "encoder": encoder < positions(self.frames)[:, None],
            "decoder": decoder <= self.counts[:, None],
        }


class Utterances:
    """One split of the prepared data.

    Attributes:
        keys, texts: of each utterance.
        other: int8 [utterances], 1 for those of the second test set.
        longest: tokens of the longest reference.
        buckets: Head, Mid and Tail of the training text's words, where the index has them.
        decoding: as the index says, else greedy.
    """

    def __init__(self, prepared: Path, index: Mapping[str, Any], split: str) -> None:
        sizes = {name: len(index["splits"][name]["utterances"]) for name in SPLITS}
        first = sum(size for name, size in sizes.items() if list(SPLITS).index(name) < list(SPLITS).index(split))
        these = slice(first, first + sizes[split] + 1)
        self.features = torch.from_numpy(open_array(prepared / "features.npy"))
        self.tokens = torch.from_numpy(open_array(prepared / "tokens.npy"))
        self.starts = torch.from_numpy(np.load(prepared / "starts.npy")[these])
        self.token_starts = torch.from_numpy(np.load(prepared / "token_starts.npy")[these])
        self.frames = self.starts.diff()
        self.counts = self.token_starts.diff()
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
        frames, counts = self.frames[indices], self.counts[indices]
        within = torch.arange(int(frames.max()))
        inside = within < frames[:, None]
        features = self.features[torch.where(inside, self.starts[indices][:, None] + within, 0)]
        features = features.masked_fill_(~inside[..., None], 0.0)
        within = torch.arange(max(1, int(counts.max())))
        inside = within < counts[:, None]
        tokens = self.tokens[torch.where(inside, self.token_starts[indices][:, None] + within, 0)].long()
        tokens = tokens.masked_fill_(~inside, PAD)
        return Batch(features.to(device), frames.to(device), tokens.to(device), counts.to(device))

    def steps_per_epoch(self, training: SpeechTraining) -> int:
        return sum(-(-len(members) // size) for members, size in self._classes(training))

    def batches(self, training: SpeechTraining, generator: torch.Generator) -> list[Tensor]:
        """Every utterance once, in a random order of random batches within classes of like length.

        No batch is longer than `batch_seconds`, padding included, unless a single utterance is. Their number and
        sizes are the same in every epoch.
        """
        batches = []
        for members, size in self._classes(training):
            order = torch.randperm(len(members), generator=generator)
            batches += members[order].split(size)
        return [batches[place] for place in torch.randperm(len(batches), generator=generator)]

    def in_order(self) -> list[Tensor]:
        """Every utterance once, by length, in batches for evaluation."""
        by_length = torch.argsort(self.frames, stable=True)
        batches, first = [], 0
        while first < len(by_length):
            # The longest is the last: grow until its padding fills the batch.
            last = first + 1
            while last < len(by_length) and (last + 1 - first) * int(self.frames[by_length[last]]) <= EVALUATION_FRAMES:
                last += 1
            batches.append(by_length[first:last])
            first = last
        return batches

    def _classes(self, training: SpeechTraining) -> list[tuple[Tensor, int]]:
        """Utterances of like length, and how many of them make a batch."""
        level = (self.frames.double().log() / np.log(CLASS_RATIO)).floor()
        budget = training.batch_seconds * FRAMES_PER_SECOND
        classes = []
        for value in level.unique():
            members = torch.nonzero(level == value).flatten()
            classes.append((members, max(1, int(budget // int(self.frames[members].max())))))
        return classes


def spec_augment(batch: Batch, settings: SpecAugment, generator: torch.Generator) -> Batch:
    """Frequency and time masks, of each utterance its own, over its true length; masked features are 0."""
    bins = batch.features.shape[2]
    most = batch.frames * settings.time_share / max(1, settings.time_masks)
    time = _masks(batch.frames, settings.time_masks, settings.time_width, most, batch.features.shape[1], generator)
    all_bins = torch.full_like(batch.frames, bins)
    frequency = _masks(all_bins, settings.frequency_masks, settings.frequency_width, all_bins, bins, generator)
    covered = time[:, :, None] | frequency[:, None, :]
    return replace(batch, features=batch.features.masked_fill(covered, 0.0))


def _masks(lengths: Tensor, count: int, width: int, most: Tensor, places: int, generator: torch.Generator) -> Tensor:
    """Bool [batch, places]: `count` stretches, each of a width below `width` and at most `most`, inside `lengths`."""
    draws = torch.rand(2, len(lengths), count, 1, generator=generator, device=lengths.device)
    widths = torch.minimum((draws[0] * width).floor(), most.floor()[:, None, None])
    starts = (draws[1] * (lengths[:, None, None] - widths + 1)).floor()
    place = torch.arange(places, device=lengths.device)
    return ((place >= starts) & (place < starts + widths)).any(1)
