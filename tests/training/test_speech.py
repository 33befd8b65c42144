"""Speech runs from warm-up to evaluation, on two dozen spoken utterances."""

from types import SimpleNamespace

import pytest
import torch

from bbnet.sparsity.slab import connections
from bbnet.tasks.asr import task
from bbnet.tasks.asr.buckets import make_buckets
from bbnet.training.checkpoint import load_state, save_masks, save_state, save_weights
from bbnet.training.runs import Job, evaluate, train, warm_up
from bbnet.training.trainer import Trainer
from tests.training.conftest import SPEECH_MODEL as MODEL

PACK = {"pack": "spoken_words", "train": 24, "train_speakers": 3, "val": 5, "test": 6, "speakers": 2, "words": 12}
TRAINING = {
    "epochs": 4,
    "warm_up_epochs": 1,
    "batch_seconds": 4,
    "learning_rate": 0.01,
    "clip_norm": 1.0,
    "spec_augment": {"frequency_masks": 1, "time_masks": 1, "time_width": 10},
}
METHODS = {
    "dense": {"algorithm": "dense"},
    "sp_in": {"algorithm": "budgeted_broadcast", "side": "in"},
    "sp_out": {"algorithm": "budgeted_broadcast", "side": "out"},
    "both": {"algorithm": "budgeted_broadcast", "side": "both"},
    "magnitude": {"algorithm": "magnitude", "side": "in"},
    "rigl": {"algorithm": "rigl", "side": "in"},
    "topk": {"algorithm": "topk"},
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> SimpleNamespace:
    raw, folder = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("prepared")
    manifest = {"root": str(raw)} | task.fetch(PACK, raw)
    index = task.prepare(manifest, {"tokens": {"kind": "characters"}, "faults": {}}, folder)
    return SimpleNamespace(folder=folder, index=index, buckets=make_buckets(index)["types"])


@pytest.fixture(scope="module")
def job(prepared):
    def make(method: str, *, with_buckets: bool = False, **training) -> Job:
        config = {
            "task": "asr",
            "model": MODEL,
            "training": TRAINING | training,
            "slabs": "wide",
            "seed": 0,
            "device": "cpu",
            "cpu_threads": 1,
            "deterministic": False,
            "precision": "auto",
            "compile": "auto",
            "method": METHODS[method],
            "budget": "1.00" if method == "dense" else "0.37",
            "smallest_budget": "0.37",
            "sparsity": {"rescale": "none", "ramp_end": 0.4, "freeze": 0.75, "every": 2},
        }
        index = prepared.index | ({"buckets": prepared.buckets} if with_buckets else {})
        return Job(config, prepared.folder, index)

    return make


@pytest.fixture(scope="module")
def warm_start(job, tmp_path_factory):
    path = tmp_path_factory.mktemp("warm_up") / "checkpoint.pt"
    save_state(path, warm_up(job("dense"))[0])
    return lambda: load_state(path, torch.device("cpu"))


@pytest.mark.parametrize("method", METHODS)
def test_a_run_keeps_its_budget_and_is_scored_with_its_masks(job, warm_start, method, tmp_path):
    run = train(job(method), warm_start())
    save_weights(tmp_path / "model.safetensors", run.weights)
    save_masks(tmp_path / "masks.safetensors", run.masks)
    model = task.build_model(job(method).model_settings, job(method).index, job(method).device)
    slabs, _ = job(method).slabs(model, job(method).slab_side)
    for slab in slabs:
        mask, weight = run.masks[slab.name], connections(run.weights[f"{slab.name}.weight"], slab.side)
        kept = 24 * 16 if method in ("dense", "topk") else round(0.37 * 24 * 16)
        assert int(mask.sum()) == kept
        assert not weight[~mask].any()
    evaluation = evaluate(job(method, with_buckets=True), tmp_path)
    items = evaluation.items
    assert len(items["utterance"]) == 12 and items["other"].tolist() == [0] * 6 + [1] * 6
    charged = sum(
        items[f"{name}_{kind}"] for name in ("head", "mid", "tail", "oov") for kind in ("substitutions", "deletions")
    )
    assert (charged == items["substitutions"] + items["deletions"]).all()
    assert {"wer", "cer", "wer_head", "wer_other"} <= set(evaluation.metrics)
    assert 0 < run.cost["flops"]["sparse"] <= run.cost["flops"]["dense"]


def test_every_method_sees_the_same_batches_and_dropout(job, warm_start, monkeypatch):
    seen: dict[str, list] = {}
    original = task.loss
    for method in ("dense", "sp_in", "rigl"):
        draws = seen[method] = []

        def loss(model, batch, draws=draws):
            draws.append((batch.features.sum().item(), batch.tokens.tolist(), torch.get_rng_state().tolist()))
            return original(model, batch)

        with monkeypatch.context() as patch:
            patch.setattr(task, "loss", loss)
            train(job(method), warm_start())
    assert seen["dense"] == seen["sp_in"] == seen["rigl"]


def test_dropout_of_an_epoch_does_not_depend_on_how_it_was_reached(job, warm_start):
    """As a run that resumes must: the global generator is left anywhere by what came before."""
    losses = []
    for noise in (0, 7):
        trainer = job("dense").trainer()
        trainer.load_state(warm_start())
        torch.manual_seed(noise)
        losses.append(trainer.run_epoch("sparse")["train_loss"])
    assert losses[0] == losses[1]


def test_gradients_are_clipped_before_the_step(prepared):
    training = task.TrainingSettings(
        **TRAINING | {"clip_norm": 1e-3, "optimizer": "sgd", "learning_rate": 1.0, "rise": 0.0}
    )
    trainer = Trainer(
        task, task.ModelSettings(**MODEL), training, prepared.folder, prepared.index, 0, torch.device("cpu")
    )
    norms = []
    trainer.optimizer.register_step_pre_hook(
        lambda *_: norms.append(torch.nn.utils.get_total_norm([p.grad for p in trainer.model.parameters()]).item())
    )
    trainer.run_epoch("warm_up")
    assert len(norms) == trainer.steps_per_epoch > 1
    assert max(norms) <= 1.001e-3


def test_on_rates_of_training_see_no_padding(job, warm_start, monkeypatch):
    """Padding made loud changes no mask."""
    quiet = train(job("sp_in"), warm_start())
    from bbnet.tasks.asr.data import batches

    original = batches.Utterances.batch

    def loud(self, indices, device):
        batch = original(self, indices, device)
        padding = torch.arange(batch.features.shape[1]) >= batch.frames[:, None]
        batch.features[padding] = 50.0
        return batch

    monkeypatch.setattr(batches.Utterances, "batch", loud)
    noisy = train(job("sp_in"), warm_start())
    assert quiet.refreshes == noisy.refreshes
