"""The fast path gives the numbers of the plain one: to the bit where only the input differs, else nearly so."""

import re
import shutil
from types import SimpleNamespace

import pytest
import torch

from bbnet.tasks import task as tasks
from bbnet.training import step
from bbnet.training.runs import Job, train, warm_up
from bbnet.training.seeding import stream
from bbnet.training.step import compiled, optimiser_step, resolve_precision
from tests.training.conftest import SPEECH_MODEL

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
STUDY = {
    "asr": {
        "data": {
            "pack": "spoken_words",
            "train": 16,
            "train_speakers": 3,
            "val": 4,
            "test": 4,
            "speakers": 2,
            "words": 12,
        },
        "prepare": {"tokens": {"kind": "characters"}, "faults": {}},
        "model": SPEECH_MODEL,
        "training": {"batch_seconds": 4, "clip_norm": 1.0, "spec_augment": {"frequency_masks": 1, "time_masks": 1}},
    },
    "change": {
        "data": {"pack": "aerial_scenes", "size": 32, "train": 18, "val": 4, "test": 4},
        "prepare": {"tile": 32},
        "model": {"widths": [8, 8]},
        "training": {"batch_size": 3},
    },
    "classification": {
        "data": {"pack": "rendered_objects", "train": 40, "val": 10, "test": 10},
        "prepare": {
            "data": {"pack": "rendered_objects", "val": 10},
            "size": 32,
            "input_size": None,
            "resize": "crop",
            "faults": {},
        },
        "model": {"architecture": "cifar_resnet", "depth": 8, "width": 8, "stem_stride": 2},
        "training": {"batch_size": 8, "learning_rate": 0.001, "augmentation": {"mixup": 0.2}},
    },
    "face": {
        "data": {
            "pack": "rendered_faces",
            "size": 32,
            "identities": 6,
            "train": 40,
            "val": 1,
            "test": 1,
            "gallery": 4,
            "probes": 1,
            "strangers": 4,
        },
        "prepare": {"size": 32, "resize": "crop", "faults": {}},
        "model": {"architecture": "small", "widths": [8, 8], "blocks": [1, 1], "head": "arcface"},
        "training": {"batch_size": 6},
    },
    "language": {
        "data": {"pack": "python_source", "train": 20_000, "val": 2_000, "test": 2_000},
        "prepare": {
            "data": {"pack": "python_source", "train": 20_000, "val": 2_000, "test": 2_000},
            "tokens": {"kind": "bytes"},
            "context": 32,
            "floor_order": None,
            "faults": {},
        },
        "model": {"width": 16, "hidden": 24, "layers": 1, "heads": 2},
        "training": {"batch_size": 6},
    },
    "logic": {
        "data": {"pack": "formulas", "seed": 0, "bits": 12, "xor_bits": 2, "dnf_literals": 2}
        | {"train": 100, "val": 20, "test": 20},
        "prepare": {"data": {"bits": 12}},
        "model": {"formula": "dnf", "widths": [16, 16]},
        "training": {"batch_size": 8, "epoch_steps": 6},
    },
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The prepared arrays of a task, made once."""
    made = {}

    def make(name: str) -> SimpleNamespace:
        if name not in made:
            raw, folder = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("prepared")
            task, settings = tasks.load(name), STUDY[name]
            manifest = {"root": str(raw)} | task.fetch(settings["data"], raw)
            made[name] = SimpleNamespace(folder=folder, index=task.prepare(manifest, settings["prepare"], folder))
        return made[name]

    return make


@pytest.fixture
def job(prepared):
    def make(name: str, method: str = "sp_in", **config) -> Job:
        training = {"epochs": 4, "warm_up_epochs": 1, "learning_rate": 0.01} | STUDY[name]["training"]
        algorithm = {
            "sp_in": {"algorithm": "budgeted_broadcast", "side": "in"},
            "rigl": {"algorithm": "rigl", "side": "in"},
        }
        made = {
            "task": name,
            "model": STUDY[name]["model"],
            "training": training,
            "slabs": "wide",
            "seed": 0,
            "device": "cpu",
            "cpu_threads": 1,
            "deterministic": False,
            "precision": "float32",
            "compile": "off",
            "method": algorithm[method],
            "budget": "0.50",
            "smallest_budget": "0.50",
            "sparsity": {"rescale": "none", "ramp_end": 0.4, "freeze": 0.75, "every": 2},
        }
        return Job(made | config, prepared(name).folder, prepared(name).index)

    return make


def trained(job: Job) -> tuple[dict, dict, list]:
    state, _, _ = warm_up(job)
    run = train(job, state)
    return run.weights, run.masks, run.history


@pytest.mark.parametrize("name", STUDY)
def test_where_samples_lie_changes_no_bit_of_a_run(job, monkeypatch, name):
    found = {}
    for resident in ("auto", "on", "off"):
        monkeypatch.setenv("BBNET_RESIDENT", resident)
        found[resident] = trained(job(name))
    for weights, masks, history in (found["on"], found["off"]):
        assert all(torch.equal(weights[key], found["auto"][0][key]) for key in found["auto"][0])
        assert all(torch.equal(masks[key], found["auto"][1][key]) for key in found["auto"][1])
        assert history == found["auto"][2]


def losses(job: Job, steps: int = 6) -> list[float]:
    """Of the first steps, each loss on the weights that the steps before left."""
    trainer = job.trainer()
    trainer.compile(job.config["compile"])
    trainer.model.train()
    batches = trainer.feed.split.batches(trainer.training, stream("order", 0, 1))
    torch.manual_seed(0)
    drawing, found = torch.Generator().manual_seed(0), []
    for number in range(steps):
        batch = trainer.feed.split.batch(batches[number % len(batches)], job.device)
        arguments = (trainer.task, trainer.network, trainer.optimizer, trainer.training, batch, drawing)
        found.append(float(optimiser_step(*arguments, trainer.precision)))
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())
    return found


@pytest.mark.parametrize("name", STUDY)
def test_half_precision_follows_float32_within_three_per_cent(job, name):
    """bfloat16 has 8 bits of mantissa, so that a number is off by at most 0.4 %."""
    full, half = losses(job(name)), losses(job(name, precision="bfloat16"))
    assert half != full
    assert half == pytest.approx(full, rel=0.03)


@pytest.mark.thorough
@needs_compiler
@pytest.mark.parametrize(
    "name",
    [
        "change",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("asr", "classification", "face", "language", "logic")
        ),
    ],
)
def test_compiled_steps_follow_plain_ones(job, name):
    """Sums are taken in another order, which six steps at a large learning rate carry on."""
    settings = {"task": name}
    if name == "asr":  # compiled dropout draws other numbers
        settings["model"] = STUDY[name]["model"] | {"dropout": 0.0}
    plain, fast = losses(job(name, **settings)), losses(job(name, compile="on", **settings))
    assert fast == pytest.approx(plain, rel=1e-3)


def test_short_trainings_are_not_compiled_unless_asked_to(job, caplog):
    trainer = job("change", compile="auto").trainer()
    with caplog.at_level("INFO"):
        assert trainer.compile("auto") is False
    assert trainer.network is trainer.model
    assert "compile: off, since the training has 24 steps; on this device it pays off from 10000" in caplog.text


@pytest.mark.parametrize(
    ("error", "why"), [(RuntimeError("no C++ compiler\nhere"), "no C++ compiler"), (AssertionError(), "AssertionError")]
)
def test_where_the_compiler_fails_auto_goes_on_without_and_on_says_why(job, caplog, monkeypatch, error, why):
    def fail(model, **options):
        raise error

    monkeypatch.setattr(torch, "compile", fail)
    monkeypatch.setitem(step.STEPS_WORTH_COMPILING, "cpu", 1)
    trainer = job("change").trainer()
    before = torch.get_rng_state()
    with caplog.at_level("WARNING"):
        assert trainer.compile("auto") is False
    assert torch.equal(torch.get_rng_state(), before)
    assert f"compile: off, since the model cannot be compiled here ({why})" in caplog.text
    with pytest.raises(ValueError, match=rf"compile on: .*\({re.escape(why)}\); allowed: auto, off"):
        trainer.compile("on")


def test_the_trial_leaves_model_and_random_numbers_alone(job, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)
    one = job("asr").trainer()
    state = {name: tensor.clone() for name, tensor in one.model.state_dict().items()}
    drawn = torch.get_rng_state()
    batch = one.feed.split.batch(one.feed.split.batches(one.training, stream("order", 0, 1))[0], one.device)
    assert compiled(one.task, one.model, batch, torch.float32, "on") is one.model
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(tensor, state[name]) for name, tensor in one.model.state_dict().items())
    assert all(parameter.grad is None for parameter in one.model.parameters())


@pytest.mark.parametrize(
    ("wanted", "device", "knows", "found"),
    [
        ("auto", "cpu", True, torch.float32),
        ("auto", "cuda", True, torch.bfloat16),
        ("auto", "cuda", False, torch.float32),
        ("float32", "cuda", True, torch.float32),
        ("bfloat16", "cpu", False, torch.bfloat16),
    ],
)
def test_precision_is_half_where_a_gpu_has_it(monkeypatch, wanted, device, knows, found):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: knows)
    assert resolve_precision(wanted, torch.device(device)) == found


@needs_gpu
@pytest.mark.parametrize("method", ["sp_in", "rigl"])
@pytest.mark.parametrize("name", STUDY)
def test_no_step_between_refreshes_waits_for_the_gpu(job, name, method):
    from bbnet.sparsity.sparsifier import sparsify

    settings = STUDY[name]["model"] | ({"ctc_weight": 0.0} if name == "asr" else {})  # torch's CTC waits
    made = job(name, method, device="cuda", precision="auto", model=settings)
    trainer = made.trainer()
    slabs, _ = made.slabs(trainer.model, made.slab_side)
    sparsifier = sparsify(trainer.model, trainer.optimizer, slabs, method, 0.5, total_steps=1000, every=100)
    batches = trainer.feed.split.batches(trainer.training, stream("order", 0, 1))
    drawing = torch.Generator(made.device).manual_seed(0)
    try:
        for number in range(6):
            if number == 3:
                torch.cuda.set_sync_debug_mode("error")
            (batch,) = trainer.feed.batches(batches[:1])
            arguments = (trainer.task, trainer.network, trainer.optimizer, trainer.training, batch, drawing)
            optimiser_step(*arguments, trainer.precision, sparsifier)
    finally:
        torch.cuda.set_sync_debug_mode("default")
