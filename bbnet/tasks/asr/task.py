"""Speech recognition: LibriSpeech's layout, a Transformer with joint CTC, WER by Head, Mid and Tail."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bbnet.data.packs import Pack
from bbnet.tasks.asr.data.batches import Batch, Utterances, spec_augment
from bbnet.tasks.asr.data.corpus import fetch
from bbnet.tasks.asr.data.features import BINS, FRAMES_PER_SECOND, positions
from bbnet.tasks.asr.data.prepare import prepare
from bbnet.tasks.asr.data.tokens import EOS, PAD, SPECIALS, CharacterTokeniser, normalise
from bbnet.tasks.asr.decoding import transcribe
from bbnet.tasks.asr.metrics import METRICS, SELECTION, metrics
from bbnet.tasks.asr.model import SpeechTransformer, slabs
from bbnet.tasks.asr.scoring import count_errors
from bbnet.tasks.asr.settings import FILLED_SHARE, Characters, Settings
from bbnet.tasks.asr.settings import SpeechTraining as TrainingSettings
from bbnet.tasks.asr.settings import Transformer as ModelSettings
from bbnet.tasks.task import Items

CHARACTERS_PER_SECOND = 14  # speed of read English, including spaces
CHARACTERS_PER_PIECE = 4
SHORTEST_FRAMES = 7  # receptive field of the convolutions


def open_split(prepared: Path, index: Mapping[str, Any], split: str) -> Utterances:
    return Utterances(prepared, index, split)


def build_model(settings: ModelSettings, index: Mapping[str, Any], device: torch.device) -> nn.Module:
    return SpeechTransformer(settings, index["tokens"]["vocabulary"]).to(device)


def example_inputs(index: Mapping[str, Any], device: torch.device) -> tuple[Tensor, ...]:
    """Returns the inputs for one utterance of mean length."""
    frames, tokens = index["mean_frames"], index["mean_tokens"]
    return (
        torch.zeros(1, frames, BINS, device=device),
        torch.tensor([frames], device=device),
        torch.full((1, tokens + 1), EOS, device=device),
    )


def random_batch(settings: Settings, pack: Pack | None, device: torch.device) -> tuple[dict[str, Any], Batch]:
    """Returns a batch of utterances of the mean length, estimated from the settings."""
    steps, _ = settings.estimate(pack)
    utterances = sum(pack.counts[part] for part in settings.data.train) if pack else settings.data.train
    count = max(1, round(utterances / steps))
    seconds = FILLED_SHARE * settings.training.batch_seconds / count
    characters = isinstance(settings.tokens, Characters)
    vocabulary = CharacterTokeniser.size if characters else settings.tokens.size
    length = max(1, round(seconds * CHARACTERS_PER_SECOND / (1 if characters else CHARACTERS_PER_PIECE)))
    frames = max(SHORTEST_FRAMES, round(seconds * FRAMES_PER_SECOND))
    batch = Batch(
        torch.randn(count, frames, BINS).to(device),
        torch.full((count,), frames, device=device),
        torch.randint(SPECIALS, vocabulary, (count, length)).to(device),
        torch.full((count,), length, device=device),
    )
    index = {"tokens": {"vocabulary": vocabulary}, "mean_frames": frames, "mean_tokens": length}
    return index, batch


def augment(batch: Batch, training: TrainingSettings, generator: torch.Generator) -> Batch:
    """Applies SpecAugment."""
    return spec_augment(batch, training.spec_augment, generator)


def valid_positions(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    return batch.valid()


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Returns (1 - w) * cross-entropy + w * CTC loss, both per token of the batch, where w is `ctc_weight`."""
    settings = model.settings
    output = model(batch.features, batch.frames, batch.decoder_inputs())
    options = {"ignore_index": PAD, "label_smoothing": settings.label_smoothing}
    attention = functional.cross_entropy(output.tokens.flatten(0, 1), batch.labels().flatten(), **options)
    if output.ctc is None:
        return attention
    logs = output.ctc.float().log_softmax(-1).transpose(0, 1)
    options = {"blank": PAD, "reduction": "sum", "zero_infinity": True}
    ctc = functional.ctc_loss(logs, batch.tokens, positions(batch.frames), batch.counts, **options)
    return (1 - settings.ctc_weight) * attention + settings.ctc_weight * ctc / batch.counts.sum().clamp(min=1)


@torch.no_grad()
def evaluate(model: nn.Module, split: Utterances, device: torch.device) -> tuple[Items, Items]:
    """Returns counts per utterance (`utterance`, `other` and those of `count_errors`), and the texts, `hypothesis`.

    A hypothesis has at most as many tokens as the encoder has positions or as the longest reference has with `EOS`,
    whichever is more.
    """
    hypotheses = [""] * len(split)
    for indices in split.in_order():
        batch = split.batch(indices, device)
        limits = positions(batch.frames).clamp(min=split.longest + 1)
        written = transcribe(model, batch.features, batch.frames, limits, split.decoding)
        for index, tokens in zip(indices.tolist(), written, strict=True):
            hypotheses[index] = normalise(split.tokeniser.decode(tokens))
    items = {"utterance": np.array(split.keys), "other": split.other}
    items |= count_errors(split.texts, hypotheses, split.buckets)
    return items, {"hypothesis": np.array(hypotheses)}
