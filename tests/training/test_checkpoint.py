"""Weights, masks and states on disk: whole or absent, of the right model, and never code."""

import errno
import json
import struct
from pathlib import Path

import pytest
import torch
from torch import nn

from bbnet.training.checkpoint import load_masks, load_state, load_weights, save_masks, save_state, save_weights

CPU = torch.device("cpu")


class Hostile:
    """Unpickled, it would leave a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.fixture
def net():
    def make(width: int = 6) -> nn.Module:
        layers = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Conv2d(width, 2, 1))
        return layers.to(memory_format=torch.channels_last)

    return make


def header_of(path: Path) -> dict:
    """A safetensors header, read by hand."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length])


def test_weights_come_back_bit_for_bit(net, tmp_path):
    saved, loaded = net(), net()
    saved(torch.randn(2, 3, 5, 5))
    save_weights(tmp_path / "model.safetensors", saved.state_dict())
    load_weights(tmp_path / "model.safetensors", loaded)
    before, after = saved.state_dict(), loaded.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert list(tmp_path.iterdir()) == [tmp_path / "model.safetensors"]


@pytest.mark.parametrize("other", [8, 5])
def test_weights_of_another_width_are_refused_in_one_line(net, tmp_path, other):
    path = tmp_path / "model.safetensors"
    save_weights(path, net(other).state_dict())
    with pytest.raises(ValueError, match="weights of another model") as refused:
        load_weights(path, net())
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("damage", [lambda state: state.pop("0.bias"), lambda state: state.update(extra=torch.ones(1))])
def test_missing_and_surplus_weights_are_refused(net, tmp_path, damage):
    state = net().state_dict()
    damage(state)
    path = tmp_path / "model.safetensors"
    save_weights(path, state)
    with pytest.raises(ValueError, match="weights of another model"):
        load_weights(path, net())


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_file_is_refused_by_name(net, tmp_path, kept):
    weights, masks = tmp_path / "model.safetensors", tmp_path / "masks.safetensors"
    save_weights(weights, net().state_dict())
    save_masks(masks, {"layer": torch.ones(40, 40, dtype=torch.bool)})
    for path, load in ((weights, lambda path: load_weights(path, net())), (masks, load_masks)):
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(ValueError, match=path.name) as refused:
            load(path)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("shape", [(5, 7), (8, 8), (1, 3), (3, 1)])
def test_masks_are_one_bit_per_connection_in_c_order_with_their_shape(tmp_path, shape):
    mask = torch.rand(shape) < 0.5
    path = tmp_path / "masks.safetensors"
    save_masks(path, {"a.conv": mask, "b": ~mask})
    header = header_of(path)
    assert header["__metadata__"] == dict.fromkeys(("a.conv", "b"), f"[{shape[0]}, {shape[1]}]")
    assert header["a.conv"]["dtype"] == "U8"
    assert header["a.conv"]["shape"] == [-(-mask.numel() // 8)]
    begin, end = header["a.conv"]["data_offsets"]
    packed = path.read_bytes()[-sum(-(-mask.numel() // 8) for _ in "ab") :][begin:end]
    bits = [byte >> (7 - place) & 1 for byte in packed for place in range(8)][: mask.numel()]
    assert bits == mask.flatten().int().tolist()
    loaded = load_masks(path)
    assert torch.equal(loaded["a.conv"], mask)
    assert torch.equal(loaded["b"], ~mask)
    assert loaded["b"].dtype == torch.bool


def test_a_state_comes_back(tmp_path):
    state = {
        "model": {"w": torch.randn(3)},
        "epoch": 3,
        "history": [{"loss": 0.1 + 0.2, "phase": "warm_up"}],
        "fingerprint": "x",
    }
    save_state(tmp_path / "checkpoint.pt", state)
    loaded = load_state(tmp_path / "checkpoint.pt", CPU)
    assert torch.equal(loaded.pop("model")["w"], state.pop("model")["w"])
    assert loaded == state


def test_a_state_that_holds_code_is_refused_and_nothing_of_it_runs(tmp_path):
    trace = tmp_path / "executed"
    torch.save({"model": {}, "epoch": Hostile(trace)}, tmp_path / "checkpoint.pt")
    with pytest.raises(Exception, match=r"(?i)weights.only|checkpoint\.pt"):
        load_state(tmp_path / "checkpoint.pt", CPU)
    assert not trace.exists()
    torch.load(tmp_path / "checkpoint.pt", weights_only=False)
    assert trace.exists()  # it would have run


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: torch.save({"epoch": Hostile(path.with_name("executed"))}, path),
        lambda path: path.write_bytes(path.read_bytes()[:-30]),
        lambda path: path.write_text("<html>404</html>"),
    ],
    ids=["hostile", "truncated", "text"],
)
def test_a_state_that_cannot_be_loaded_is_refused_in_one_line_by_name(tmp_path, spoil):
    path = tmp_path / "checkpoint.pt"
    save_state(path, {"model": {"w": torch.randn(30)}, "epoch": 1})
    spoil(path)
    with pytest.raises(ValueError, match=r"checkpoint\.pt") as refused:
        load_state(path, CPU)
    assert "\n" not in str(refused.value)


def fail_midway(*arguments, **keywords):
    partial = next(argument for argument in arguments if isinstance(argument, Path))
    with partial.open("wb") as file:
        file.write(b"half")
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("before", [None, b"whole"])
@pytest.mark.parametrize(
    ("owner", "name", "save"),
    [
        (Path, "write_bytes", lambda path: save_weights(path, {"w": torch.ones(3)})),
        (Path, "write_bytes", lambda path: save_masks(path, {"m": torch.ones(2, 2, dtype=torch.bool)})),
        (Path, "write_bytes", lambda path: save_state(path, {"epoch": 1})),
    ],
    ids=["weights", "masks", "state"],
)
def test_nothing_half_written_is_left_when_saving_fails(tmp_path, monkeypatch, owner, name, save, before):
    path = tmp_path / "file.bin"
    if before is not None:
        path.write_bytes(before)
    monkeypatch.setattr(owner, name, fail_midway)
    with pytest.raises(OSError, match=r"No space left on device: .*file\.bin"):
        save(path)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([] if before is None else [before])


def test_a_state_that_cannot_be_saved_leaves_nothing(tmp_path):
    with pytest.raises(Exception, match=r"(?i)pickle"):
        save_state(tmp_path / "checkpoint.pt", {"model": torch.ones(1000), "loss": lambda: None})
    assert list(tmp_path.iterdir()) == []
