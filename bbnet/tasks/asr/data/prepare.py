"""Computes the arrays of features and tokens from audio and transcripts, and their index."""

import json
import logging
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from bbnet.data.files import warn_of_unread
from bbnet.data.process import cores, worker_pool
from bbnet.data.progress import track
from bbnet.data.store import appended_array, whole_file
from bbnet.tasks.asr.data.corpus import ALLOWED, SPLITS, Utterance, folders_of, read_folder, unread_beside
from bbnet.tasks.asr.data.features import BINS, SAMPLE_RATE, UndecodableError, log_mel, positions, read_audio
from bbnet.tasks.asr.data.tokens import copy_tokeniser, normalise, train_tokeniser
from bbnet.tasks.asr.settings import Faults, Tokens
from bbnet.tasks.task import Trained

logger = logging.getLogger(__name__)
UTTERANCES_PER_SHARD = 32
NAMED_IN_ERRORS = 3
SMALLEST_SD = 1e-3


class Usable(NamedTuple):
    """A usable utterance: its key, normalised text and number of frames, and its tokens once they are known."""

    key: str
    text: str
    frames: int
    tokens: Sequence[int] = ()


@dataclass
class FaultyUtterances:
    """Handles unusable utterances by the rule of their kind, and lists those that are skipped or resampled."""

    rules: Faults
    skipped: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    resampled: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    def judge(self, folder: str, kind: str, found: Mapping[str, str]) -> None:
        """Raises ValueError naming the first of `found` if the kind is refused; otherwise logs and lists all of them.

        Args:
            found: key of the utterance -> description of its fault.
        """
        if not found:
            return
        reasons = [found[key] for key in sorted(found)]
        named = "; ".join(reasons[:NAMED_IN_ERRORS])
        others = f"; and {len(reasons) - NAMED_IN_ERRORS} more" if len(reasons) > NAMED_IN_ERRORS else ""
        rule = getattr(self.rules, kind)
        if rule == "refuse":
            ways = f"faults.{kind}: skip omits such utterances" + (", resample uses them" if kind == "low_rate" else "")
            raise ValueError(f"{named}{others} ({len(reasons)} of {folder}; {ways})")
        logger.info("%s: %d utterances, faults.%s: %s: %s%s", folder, len(reasons), kind, rule, named, others)
        kinds = self.skipped if rule == "skip" else self.resampled
        kinds.setdefault(folder, {})[kind] = sorted(found)

    def leave_out(self, root: Path, folder: str, unread: Sequence[Path]) -> None:
        """Adds the files in a folder, or `.` for beside all, that are not read to `skipped`, and warns of them."""
        where = "{split}/" if folder == "." else ""
        read = f"{where}{ALLOWED}, and {where}{{speaker}}/{{chapter}}/*.trans.txt"
        warn_of_unread(root / folder, unread, read)
        if unread:
            self.skipped.setdefault(folder, {})["not_read"] = [str(file.relative_to(root)) for file in unread]

    def others(self, rows: Sequence[Usable], folder: str, kind: str, found: Mapping[str, str]) -> list[Usable]:
        """Judges `found`, and returns the other rows of the folder."""
        self.judge(folder, kind, found)
        return [row for row in rows if row.key not in found]


@dataclass(frozen=True)
class Shard:
    """Utterances of a folder whose features are computed together and stored in one file, `path`."""

    folder: str
    utterances: Sequence[Utterance]
    path: Path
    low_rate: str

    def size(self) -> int:
        return len(self.utterances)


def prepare(
    manifest: Mapping[str, Any], settings: Mapping[str, Any], target: Path, trained: Trained | None = None
) -> dict[str, Any]:
    """Computes features and tokens of every utterance, in the order train, val, test-clean, test-other.

    Writes `features.npy`, float32 [frames, 80], normalised per bin by the statistics of the training split;
    `starts.npy`, int64 [utterances + 1], the first frame of each; likewise `tokens.npy`, int32, and `token_starts.npy`.
    Shards that an interrupted call left in `target` are not computed again.

    Returns the index: per split the utterances, their normalised texts and the number from each folder.
    Raises: ValueError naming the utterances that a rule of `faults` refuses, or a folder without usable utterances.
    """
    faulty = FaultyUtterances(Faults(**settings["faults"]))
    splits = {split: manifest["splits"][split] for split in SPLITS}  # in the order in which `Utterances` reads them
    root, found = Path(manifest["root"]), {}
    for folder in folders_of(splits):
        found[folder], unpaired, unread = read_folder(root, folder)
        faulty.judge(folder, "unpaired", unpaired)
        faulty.leave_out(root, folder, unread)
    unread, not_chosen = unread_beside(root, list(found))
    faulty.leave_out(root, ".", unread)
    if not_chosen:
        logger.info(
            "%s: folders that data.train does not choose: %s", root, ", ".join(path.name for path in not_chosen)
        )
    shards = list(_shards(found, target / "shards", faulty.rules.low_rate))
    _compute(shards)
    kept = {folder: _usable(folder, shards, faulty) for folder in found}
    for folder, rows in kept.items():
        wordless = {row.key: f"{row.key}: its transcript has no letters A to Z" for row in rows if not row.text}
        kept[folder] = faulty.others(rows, folder, "no_words", wordless)
    _refuse_empty(manifest, kept)
    if trained is None:
        tokens: Tokens = TypeAdapter(Tokens).validate_python(settings["tokens"])
        tokeniser = train_tokeniser(tokens, [row.text for folder in splits["train"] for row in kept[folder]], target)
    else:
        tokeniser = copy_tokeniser(trained.folder, trained.index, target)
    for folder, rows in kept.items():
        kept[folder] = [row._replace(tokens=tokeniser.encode(row.text)) for row in rows]
    for folder in splits["train"]:
        kept[folder] = faulty.others(kept[folder], folder, "too_many_tokens", _too_many_tokens(kept[folder]))
    _refuse_empty(manifest, kept)
    if trained is None:
        train = [row for folder in splits["train"] for row in kept[folder]]
        index = _statistics(shards, kept, splits["train"]) | {
            "tokens": settings["tokens"] | {"vocabulary": tokeniser.size},
            "mean_frames": round(sum(row.frames for row in train) / len(train)),
            "mean_tokens": max(1, round(sum(len(row.tokens) for row in train) / len(train))),
        }
    else:
        index = {name: trained.index[name] for name in ("mean", "sd", "tokens", "mean_frames", "mean_tokens")}
    _write_features(shards, kept, index["mean"], index["sd"], target)
    all_tokens = [row.tokens for rows in kept.values() for row in rows]
    np.save(target / "tokens.npy", np.array([token for tokens in all_tokens for token in tokens], dtype=np.int32))
    np.save(target / "token_starts.npy", np.cumsum([0, *map(len, all_tokens)], dtype=np.int64))
    shutil.rmtree(target / "shards")
    return index | {
        "skipped": faulty.skipped,
        "resampled": faulty.resampled,
        "splits": {
            split: {
                "utterances": [row.key for folder in folders for row in kept[folder]],
                "texts": [row.text for folder in folders for row in kept[folder]],
                "folders": [[folder, len(kept[folder])] for folder in folders],
            }
            for split, folders in splits.items()
        },
    }


def _shards(found: Mapping[str, list[Utterance]], home: Path, low_rate: str) -> Iterator[Shard]:
    for folder, utterances in found.items():
        for first in range(0, len(utterances), UTTERANCES_PER_SHARD):
            path = home / f"{folder}-{first:07d}.npz"
            yield Shard(folder, utterances[first : first + UTTERANCES_PER_SHARD], path, low_rate)


def _compute(shards: Sequence[Shard]) -> None:
    """Computes the shards that do not exist yet, with one worker process per core of this job."""
    missing = [shard for shard in shards if not _is_current(shard)]
    if len(missing) < len(shards):
        there, total = (sum(map(Shard.size, some)) for some in (missing, shards))
        logger.info("prepare: %d of %d utterances exist already", total - there, total)
    workers = min(len(missing), cores())
    if workers <= 1:
        for shard in track(missing, "prepare: utterances", size=Shard.size):
            compute_shard(shard)
        return
    with worker_pool(workers) as pool:
        shard_of = {pool.submit(compute_shard, shard): shard for shard in missing}
        total = sum(map(Shard.size, missing))
        for job in track(as_completed(shard_of), "prepare: utterances", total, lambda job: shard_of[job].size()):
            job.result()


def _is_current(shard: Shard) -> bool:
    """Returns whether the shard's file exists and was computed from the present audio files."""
    if not shard.path.exists():
        return False
    try:
        with np.load(shard.path) as file:
            return str(file["sources"]) == _sources(shard)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return False


def _sources(shard: Shard) -> str:
    stats = [(utterance.key, utterance.audio.stat()) for utterance in shard.utterances]
    return json.dumps([[key, stat.st_size, stat.st_mtime_ns] for key, stat in stats])


def compute_shard(shard: Shard) -> None:
    """Writes the features of the utterances of a shard; unusable utterances have a fault instead."""
    torch.set_num_threads(1)
    features, faults = [], {}
    for utterance in shard.utterances:
        own, fault = _features(utterance, shard.low_rate)
        features.append(own)
        if fault is not None:
            faults[utterance.key] = fault
    with whole_file(shard.path) as partial:
        np.savez(
            partial,
            features=torch.cat(features).numpy(),
            frames=np.array([len(own) for own in features], dtype=np.int64),
            faults=np.array(json.dumps(faults)),
            sources=np.array(_sources(shard)),
        )


def _features(utterance: Utterance, low_rate: str) -> tuple[Tensor, tuple[str, str] | None]:
    """Returns the features [frames, 80], and the kind and description of a fault, with which there may be 0 frames."""
    nothing, fault = torch.empty(0, BINS), None
    try:
        samples, rate = read_audio(utterance.audio)
    except UndecodableError as error:
        return nothing, ("undecodable", str(error))
    if rate < SAMPLE_RATE:
        fault = ("low_rate", f"{utterance.audio}: sampled at {rate} Hz, below {SAMPLE_RATE} Hz")
        if low_rate != "resample":
            return nothing, fault
    features = log_mel(samples, rate)
    if positions(len(features)) < 1:
        seconds = f"{len(samples) / rate:.3f} s"
        return nothing, ("too_short", f"{utterance.audio}: {seconds} are too short for the convolutions")
    return features, fault


def _usable(folder: str, shards: Sequence[Shard], faulty: FaultyUtterances) -> list[Usable]:
    rows, by_kind = [], {}
    for shard in shards:
        if shard.folder != folder:
            continue
        with np.load(shard.path) as file:
            frames, faults = file["frames"].tolist(), json.loads(str(file["faults"]))
        for key, (kind, reason) in faults.items():
            by_kind.setdefault(kind, {})[key] = reason
        counted = zip(shard.utterances, frames, strict=True)
        rows += [Usable(each.key, normalise(each.text), count) for each, count in counted if count]
    for kind, found in by_kind.items():
        faulty.judge(folder, kind, found)
    return rows


def _refuse_empty(manifest: Mapping[str, Any], kept: Mapping[str, list]) -> None:
    for folder, rows in kept.items():
        if not rows:
            raise ValueError(f"{Path(manifest['root']) / folder}: no utterance is left")


def _too_many_tokens(rows: Sequence[Usable]) -> dict[str, str]:
    """Finds utterances too short for CTC, which needs a position per token and a blank between equal tokens."""
    found = {}
    for key, _, frames, tokens in rows:
        needed = len(tokens) + sum(one == next_ for one, next_ in pairwise(tokens))
        if needed > positions(frames):
            found[key] = f"{key}: CTC needs {needed} positions for its {len(tokens)} tokens, it has {positions(frames)}"
    return found


def _statistics(
    shards: Sequence[Shard], kept: Mapping[str, list[Usable]], training: Sequence[str]
) -> dict[str, list[float]]:
    """Returns `mean` and `sd` per bin over the training folders."""
    keys = _keys(kept)
    count, total, squares = 0, np.zeros(BINS), np.zeros(BINS)
    for shard in shards:
        if shard.folder in training:
            features = _kept_features(shard, keys[shard.folder]).astype(np.float64)
            count += len(features)
            total += features.sum(0)
            squares += np.square(features).sum(0)
    mean = total / count
    sd = np.maximum(np.sqrt(np.maximum(squares / count - mean**2, 0)), SMALLEST_SD)
    return {"mean": mean.tolist(), "sd": sd.tolist()}


def _keys(kept: Mapping[str, list[Usable]]) -> dict[str, set[str]]:
    return {folder: {row.key for row in rows} for folder, rows in kept.items()}


def _write_features(
    shards: Sequence[Shard], kept: Mapping[str, list[Usable]], mean: list[float], sd: list[float], target: Path
) -> None:
    """Writes `features.npy`, normalised per bin by `mean` and `sd`, and `starts.npy`."""
    keys = _keys(kept)
    starts = np.cumsum([0, *(row.frames for rows in kept.values() for row in rows)], dtype=np.int64)
    np.save(target / "starts.npy", starts)
    with appended_array(target / "features.npy", (int(starts[-1]), BINS), np.float32) as append:
        for shard in track(shards, "prepare: normalise", size=Shard.size):
            append((_kept_features(shard, keys[shard.folder]) - np.array(mean)) / np.array(sd))


def _kept_features(shard: Shard, keys: set[str]) -> np.ndarray:
    """Returns the features [frames, 80] of the usable utterances of a shard."""
    with np.load(shard.path) as file:
        frames, features = file["frames"], file["features"]
    return features[np.repeat([utterance.key in keys for utterance in shard.utterances], frames)]
