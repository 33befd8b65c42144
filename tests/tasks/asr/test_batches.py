"""Batches hold each utterance once and within the budget; SpecAugment masks what it may."""

import collections
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from bbnet.tasks.asr.data.batches import CLASS_RATIO, spec_augment
from bbnet.tasks.asr.settings import Settings, SpecAugment, SpeechTraining

CPU = torch.device("cpu")
LENGTHS = {
    "mixed": np.random.default_rng(0).integers(7, 600, 60).tolist(),
    "equal": [200] * 23,
    "one": [333],
    "shortest": [7, 8, 9] * 4,
    "one giant": [50, 60, 2000, 55],
}


def training(batch_seconds: float = 20.0, **masks) -> SpeechTraining:
    return SpeechTraining(
        epochs=2, warm_up_epochs=1, learning_rate=0.1, batch_seconds=batch_seconds, spec_augment=SpecAugment(**masks)
    )


def planned_steps(training: SpeechTraining, prepared: Path, utterances: int) -> int:
    """The steps that are known from the settings and the prepared data alone."""
    model = {"width": 16, "hidden": 32, "encoder_layers": 1, "decoder_layers": 1, "heads": 2, "stem_channels": 2}
    data = {"pack": "librispeech"}
    settings = Settings(data=data, models={"tiny": model}, training=training.model_dump())
    return settings.prepared_steps(prepared, {"splits": {"train": {"utterances": [""] * utterances}}})


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lists(batches) -> list[list[int]]:
    return [batch.tolist() for batch in batches]


# Batches.


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_batch_is_a_naive_gather_with_zero_padding(split_of, split):
    opened = split_of([9, 40, 7, 23], ["ABC", "", "IT'S", "Z"], split)
    features = opened.features.numpy()
    starts, token_starts = opened.starts.tolist(), opened.token_starts.tolist()
    tokens = opened.tokens.tolist()
    chosen = [3, 1, 0, 1]
    batch = opened.batch(torch.tensor(chosen), CPU)
    assert batch.frames.tolist() == [23, 40, 9, 40]
    assert batch.counts.tolist() == [1, 0, 3, 0]
    assert batch.features.shape == (4, 40, 80)
    assert batch.tokens.shape == (4, 3)
    for row, number in enumerate(chosen):
        for frame in range(40):
            first = starts[number] + frame
            expected = features[first] if first < starts[number + 1] else np.zeros(80)
            assert (batch.features[row, frame].numpy() == expected).all()
        own = tokens[token_starts[number] : token_starts[number + 1]]
        assert batch.tokens[row].tolist() == own + [0] * (3 - len(own))


def test_a_split_starts_where_those_before_it_end(split_of, tmp_path):
    """The conftest has 2 utterances in each other split but 1 in val."""
    opened = split_of([10, 20], ["A", "BC"], "test")
    earlier = 9 + 11 + 8
    everything = np.load(next(tmp_path.rglob("features.npy")))
    assert np.array_equal(opened.batch(torch.tensor([0]), CPU).features[0], everything[earlier : earlier + 10])
    assert np.array_equal(opened.batch(torch.tensor([1]), CPU).features[0], everything[earlier + 10 : earlier + 30])
    assert opened.frames.tolist() == [10, 20]
    assert opened.other.tolist() == [0, 1]
    assert opened.longest == 2


def test_decoder_inputs_start_with_the_end_symbol_and_labels_end_with_it(split_of):
    batch = split_of([9, 40, 7], ["ABC", "", "Z"]).batch(torch.tensor([0, 1, 2]), CPU)
    a, b, c, z = 4, 5, 6, 29
    assert batch.decoder_inputs().tolist() == [[1, a, b, c], [1, 0, 0, 0], [1, z, 0, 0]]
    assert batch.labels().tolist() == [[a, b, c, 1], [1, 0, 0, 0], [z, 1, 0, 0]]
    assert batch.valid()["decoder"].tolist() == [[True] * 4, [True] + [False] * 3, [True, True, False, False]]
    assert batch.valid()["encoder"].sum(1).tolist() == [1, 9, 1]


def test_batches_of_utterances_without_any_token_are_possible(split_of):
    batch = split_of([9, 8], ["", ""]).batch(torch.tensor([0, 1]), CPU)
    assert batch.counts.tolist() == [0, 0]
    assert (batch.tokens == 0).all()
    assert batch.labels()[:, 0].tolist() == [1, 1]


def test_batches_of_a_class_have_one_shape_that_of_its_longest(split_of):
    lengths = LENGTHS["mixed"]
    texts = ["A" * (1 + length % 9) for length in lengths]
    opened = split_of(lengths, texts)
    shapes = {}
    for indices in opened.batches(training(), generator(0)):
        batch = opened.batch(indices, CPU)
        own = {math.floor(math.log(lengths[number]) / math.log(CLASS_RATIO)) for number in indices.tolist()}
        (level,) = own
        shapes.setdefault(level, set()).add((batch.features.shape[1], batch.tokens.shape[1]))
    assert len(shapes) > 5
    for level, found in shapes.items():
        members = [n for n, size in enumerate(lengths) if math.floor(math.log(size) / math.log(CLASS_RATIO)) == level]
        assert found == {(max(lengths[n] for n in members), max(len(texts[n]) for n in members))}


def test_a_change_of_a_batch_does_not_reach_the_data(split_of):
    opened = split_of([9, 8])
    opened.batch(torch.tensor([0, 1]), CPU).features.fill_(77)
    assert not (opened.features == 77).any()


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("seconds", [1, 15, 300])
def test_an_epoch_has_every_utterance_once_within_the_seconds(split_of, lengths, seconds, tmp_path):
    opened = split_of(lengths)
    settings = training(seconds)
    for seed in range(4):
        batches = lists(opened.batches(settings, generator(seed)))
        assert sorted(number for batch in batches for number in batch) == list(range(len(lengths)))
        assert len(batches) == opened.steps_per_epoch(settings) == planned_steps(settings, tmp_path, len(opened))
        for batch in batches:
            assert len(batch) == 1 or len(batch) * max(lengths[number] for number in batch) <= 100 * seconds


def test_the_sizes_of_batches_are_the_same_in_every_epoch(split_of):
    opened = split_of(LENGTHS["mixed"])
    drawing = generator(0)
    epochs = [opened.batches(training(), drawing) for _ in range(4)]
    assert len({tuple(sorted(map(len, batches))) for batches in epochs}) == 1
    assert len({str(lists(batches)) for batches in epochs}) == 4


def test_the_generator_alone_decides_the_order(split_of):
    opened = split_of(LENGTHS["mixed"])
    torch.manual_seed(1)
    first = lists(opened.batches(training(), generator(3)))
    torch.manual_seed(2)
    assert lists(opened.batches(training(), generator(3))) == first
    assert lists(opened.batches(training(), generator(4))) != first


def test_batches_are_mixed_and_in_random_order(split_of):
    """An utterance meets others from epoch to epoch, and short batches come at any time."""
    opened = split_of([100] * 40)
    partners = collections.defaultdict(set)
    for seed in range(20):
        for batch in lists(opened.batches(training(4.0), generator(seed))):
            partners[batch[0]].update(batch[1:])
    assert sum(map(len, partners.values())) > 40
    opened = split_of([100] * 20 + [1000] * 20)
    first = [opened.frames[opened.batches(training(10.0), generator(seed))[0]].max().item() for seed in range(20)]
    assert set(first) == {100, 1000}


def test_little_of_a_batch_is_padding(split_of):
    lengths = LENGTHS["mixed"]
    batches = lists(split_of(lengths).batches(training(60), generator(0)))
    padded = sum(len(batch) * max(lengths[number] for number in batch) for batch in batches)
    assert sum(lengths) / padded > 0.85


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_scoring_sees_every_utterance_once(split_of, lengths):
    batches = lists(split_of(lengths, split="val").in_order())
    assert sorted(number for batch in batches for number in batch) == list(range(len(lengths)))
    assert all(batches)


# SpecAugment.


def masked(batch, settings: SpecAugment, seed: int):
    """Which features of a batch of ones are masked, bool [batch, time, 80]."""
    ones = batch.features.clone().fill_(1.0)
    for row, frames in enumerate(batch.frames.tolist()):
        ones[row, frames:] = 7.0  # padding is marked, so that a mask over it would show
    marked = type(batch)(ones, batch.frames, batch.tokens, batch.counts)
    found = spec_augment(marked, settings, generator(seed)).features
    return found == 0, found


@pytest.fixture
def batch(random_batch):
    return random_batch([200, 7, 120, 33, 200, 151], [1, 2, 3, 0, 2, 1])


def test_without_masks_nothing_changes(batch):
    found = spec_augment(batch, SpecAugment(), generator(0))
    assert (found.features == batch.features).all()
    found = spec_augment(
        batch, SpecAugment(time_masks=3, time_width=1, frequency_masks=2, frequency_width=1), generator(0)
    )
    assert (found.features == batch.features).all()
    found = spec_augment(batch, SpecAugment(time_masks=8, time_share=0.0), generator(0))
    assert (found.features == batch.features).all()


def test_what_is_not_masked_stays_and_the_rest_of_the_batch_too(batch):
    before = batch.features.clone()
    found = spec_augment(batch, SpecAugment(frequency_masks=2, time_masks=2), generator(0))
    assert (batch.features == before).all()
    assert ((found.features == batch.features) | (found.features == 0)).all()
    assert (found.frames == batch.frames).all()
    assert (found.tokens == batch.tokens).all()
    assert (found.counts == batch.counts).all()


@pytest.mark.parametrize("width", [1, 2, 5, 50, 1000])
def test_one_time_mask_is_a_stretch_inside_the_utterance_below_its_width(batch, width):
    settings = SpecAugment(time_masks=1, time_width=width, time_share=1.0)
    for seed in range(40):
        found, _ = masked(batch, settings, seed)
        assert (found.all(2) == found.any(2)).all()  # whole frames
        for row, frames in enumerate(batch.frames.tolist()):
            places = found[row, :, 0].nonzero().flatten().tolist()
            assert len(places) < width
            assert places == list(range(places[0], places[0] + len(places))) if places else True
            assert not places or places[-1] < frames


def test_padding_is_untouched_by_time_masks(batch):
    for seed in range(15):
        _, found = masked(batch, SpecAugment(time_masks=8, time_width=50, time_share=1.0), seed)
        for row, frames in enumerate(batch.frames.tolist()):
            assert (found[row, frames:] == 7.0).all()


def test_padding_that_is_zero_stays_zero(batch):
    found = spec_augment(batch, SpecAugment(frequency_masks=4, time_masks=8), generator(0))
    for row, frames in enumerate(batch.frames.tolist()):
        assert (found.features[row, frames:] == 0).all()


@pytest.mark.parametrize("width", [1, 2, 4, 80])
def test_one_frequency_mask_is_a_stretch_of_bins_of_the_whole_utterance(batch, width):
    settings = SpecAugment(frequency_masks=1, frequency_width=width)
    for seed in range(30):
        found, _ = masked(batch, settings, seed)
        for row, frames in enumerate(batch.frames.tolist()):
            own = found[row, :frames]
            assert (own == own[0]).all()
            bins = own[0].nonzero().flatten().tolist()
            assert len(bins) < width
            assert not bins or bins == list(range(bins[0], bins[0] + len(bins)))


@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("masks", [1, 8, 100])
def test_all_time_masks_together_cover_no_more_than_the_share(batch, share, masks):
    settings = SpecAugment(time_masks=masks, time_width=50, time_share=share)
    for seed in range(10):
        found, _ = masked(batch, settings, seed)
        assert (found[:, :, 0].sum(1) <= share * batch.frames + 1e-4).all()


def test_every_place_and_width_is_reached(random_batch):
    batch = random_batch([20] * 50, [1] * 50)
    covered, widths = torch.zeros(20), set()
    for seed in range(20):
        found, _ = masked(batch, SpecAugment(time_masks=1, time_width=6, time_share=1.0), seed)
        covered += found[:, :, 0].sum(0)
        widths |= set(found[:, :, 0].sum(1).tolist())
    assert (covered > 0).all()
    assert widths == {0, 1, 2, 3, 4, 5}
    bins = torch.zeros(80)
    for seed in range(40):
        bins += masked(batch, SpecAugment(frequency_masks=1, frequency_width=10), seed)[0][:, 0].sum(0)
    assert (bins > 0).all()


def test_widths_are_drawn_evenly(random_batch):
    batch = random_batch([100] * 300, [1] * 300)
    widths = torch.cat(
        [
            masked(batch, SpecAugment(time_masks=1, time_width=5, time_share=1.0), seed)[0][:, :, 0].sum(1)
            for seed in range(10)
        ]
    )
    counts = torch.bincount(widths, minlength=5) / len(widths)
    assert (counts - 0.2).abs().max() < 0.03  # 4 standard deviations


def test_each_utterance_has_its_own_masks(random_batch):
    batch = random_batch([300] * 8, [1] * 8)
    time, _ = masked(batch, SpecAugment(time_masks=2), 0)
    frequency, _ = masked(batch, SpecAugment(frequency_masks=2, frequency_width=20), 0)
    assert len({tuple(row) for row in time[:, :, 0].tolist()}) == 8
    assert len({tuple(row) for row in frequency[:, 0].tolist()}) == 8


def test_the_generator_alone_decides_the_masks(batch):
    settings = SpecAugment(frequency_masks=3, time_masks=3)
    torch.manual_seed(1)
    first, _ = masked(batch, settings, 3)
    torch.manual_seed(2)
    assert (masked(batch, settings, 3)[0] == first).all()
    assert (masked(batch, settings, 4)[0] != first).any()
    drawing = generator(3)
    draws = [spec_augment(batch, settings, drawing).features for _ in range(2)]
    assert (draws[0] != draws[1]).any()
