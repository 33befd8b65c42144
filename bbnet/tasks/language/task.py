"""Language modelling: Python files, WikiText-2, folders of text; a causal decoder; perplexity by Head, Mid and Tail."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bbnet.data.packs import Pack
from bbnet.models.decoder import CausalDecoder, slabs
from bbnet.tasks.language.data.batches import Batch, TestText, TextToScore, TrainingText
from bbnet.tasks.language.data.pack import fetch
from bbnet.tasks.language.data.prepare import prepare
from bbnet.tasks.language.data.tokens import ByteTokeniser
from bbnet.tasks.language.metrics import METRICS, PARTS, SELECTION, metrics
from bbnet.tasks.language.settings import Bytes, Settings
from bbnet.tasks.language.settings import Decoder as ModelSettings
from bbnet.tasks.settings import FixedBatchTraining as TrainingSettings
from bbnet.tasks.task import Items

IGNORED = -100


def open_split(prepared: Path, index: Mapping[str, Any], split: str) -> TrainingText | TextToScore:
    if split == "train":
        return TrainingText(prepared, index)
    return TestText(prepared, index) if split == "test" else TextToScore(prepared, index, split)


def build_model(settings: ModelSettings, index: Mapping[str, Any], device: torch.device) -> nn.Module:
    sizes = settings.model_dump(include={"width", "hidden", "layers", "heads", "tied", "dropout"})
    return CausalDecoder(index["tokens"]["vocabulary"], kind=settings.ffn, **sizes).to(device)


def example_inputs(index: Mapping[str, Any], device: torch.device) -> tuple[Tensor, ...]:
    return (torch.zeros(1, index["context"], dtype=torch.int64, device=device),)


def random_batch(settings: Settings, pack: Pack | None, device: torch.device) -> tuple[dict[str, Any], Batch]:
    vocabulary = ByteTokeniser.size if isinstance(settings.tokens, Bytes) else settings.tokens.size
    tokens = torch.randint(vocabulary, (settings.training.batch_size, settings.context + 1))
    return {"tokens": {"vocabulary": vocabulary}, "context": settings.context}, Batch(tokens.to(device))


def augment(batch: Batch, training: TrainingSettings, generator: torch.Generator) -> Batch:
    """There are no variants of a text."""
    return batch


def valid_positions(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Returns the positions whose predictions are scored, which are all of a training batch."""
    return {} if batch.scored is None else {"": batch.scored}


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Returns the mean cross-entropy of the tokens that are predicted, in nats."""
    targets = batch.targets if batch.scored is None else batch.targets.masked_fill(~batch.scored, IGNORED)
    return functional.cross_entropy(model(batch.inputs).flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


@torch.no_grad()
def evaluate(model: nn.Module, split: TextToScore, device: torch.device) -> tuple[Items, Items]:
    """Returns a table with one row per document, and the predictions.

    A row has `document`, its name; `bytes`; `tokens`, of which its end is one; `nll`, the sum of their negative
    log-likelihoods in nats; `right`, how many of them the network ranks first; and on test `{part}_tokens` and
    `{part}_nll` of Head, Mid, Tail and unseen tokens and, if there is a floor, `floor_nll` and `floor_{part}_nll`. The
    predictions are `nll` float16 and `token` int32 [tokens], that ranked first.
    """
    nll, predicted = (torch.zeros(len(split.tokens) - 1, dtype=kind) for kind in (torch.float32, torch.int32))
    for indices in split.in_order():
        batch = split.batch(indices, device)
        logits = model(batch.inputs).float()
        losses = functional.cross_entropy(logits.transpose(1, 2), batch.targets, reduction="none")
        places = batch.places[batch.scored].cpu()
        nll[places] = losses[batch.scored].cpu()
        predicted[places] = logits.argmax(-1)[batch.scored].int().cpu()
    right = (predicted == split.tokens[1:].cpu()).numpy().astype(np.int64)
    values = {"nll": nll.double().numpy(), "right": right}
    if isinstance(split, TestText):
        values |= _by_bucket(split, values["nll"])
    items = {"document": np.array(split.documents), "bytes": split.bytes, "tokens": np.diff(split.starts)}
    items |= {name: split.by_document(each) for name, each in values.items()}
    return items, {"nll": nll.numpy().astype(np.float16), "token": predicted.numpy()}


def _by_bucket(split: TestText, nll: np.ndarray) -> dict[str, np.ndarray]:
    """Returns for each part of the tokens how many they are and their nll, all [tokens]; and those of the floor."""
    runs = {"": nll} if split.floor is None else {"": nll, "floor_": split.floor}
    members = {part: split.buckets == number for number, part in enumerate(PARTS)}
    values = {f"{part}_tokens": own.astype(np.int64) for part, own in members.items()}
    for run, losses in runs.items():
        values |= {f"{run}nll": losses} | {f"{run}{part}_nll": losses * own for part, own in members.items()}
    return values
