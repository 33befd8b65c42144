"""Packed weights come back to the bit, and files that are not valid are refused before memory is allocated."""

import json
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import bbnet
from bbnet.binary.packed_file import FORMAT, LARGEST_INDEX, PARTS, VERSION, from_packed, read_packed
from bbnet.binary.packing import pack, unpack
from bbnet.binary.raw_tensors import RawTensor, from_bytes, to_bytes


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.added = stride, (outputs - inputs) // 2

    def forward(self, maps):
        own = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(maps)))))
        shortcut = maps[:, :, :: self.stride, :: self.stride]
        return functional.relu(own + functional.pad(shortcut, (0, 0, 0, 0, self.added, self.added)))


def resnet20() -> nn.Sequential:
    blocks, inputs = [], 16
    for stage, outputs in enumerate((16, 32, 64)):
        for place in range(3):
            blocks.append(Block(inputs, outputs, 2 if stage and not place else 1))
            inputs = outputs
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    backbone = nn.Sequential(*stem, *blocks)
    return nn.Sequential(backbone, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def trained(model: nn.Module, batch: torch.Tensor, budget: float | None = None, **options):
    """A few steps with binary weights, sparse ones if there is a budget; returns the binarizer."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    sparsifier = None
    if budget is not None:
        slabs = bbnet.find_slabs(model)
        sparsifier = bbnet.sparsify(model, optimizer, slabs, "magnitude", budget, total_steps=6, every=1)
    binarizer = bbnet.binarize(model, optimizer, **options)
    for _ in range(6):
        model(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    if sparsifier is not None:
        assert not all(mask.all() for mask in sparsifier.masks().values())
    return binarizer


def test_resnet_20_is_below_47_000_bytes_and_computes_the_same_bits(tmp_path):
    torch.manual_seed(0)
    model, images = resnet20(), torch.randn(4, 3, 16, 16)
    assert sum(parameter.numel() for parameter in model.parameters()) == 269_722
    binarizer = trained(model, images)
    assert sum(model.get_submodule(name).weight.numel() for name in binarizer.half_ranges) == 268_336
    path = tmp_path / "packed.safetensors"
    pack(model.state_dict(), binarizer.half_ranges, path)
    assert path.stat().st_size <= 47_000
    plain = resnet20()
    plain.load_state_dict(unpack(path))
    model.eval(), plain.eval()
    assert torch.equal(model(images), plain(images))
    assert int(plain[0][1].num_batches_tracked) == 6


def test_pruned_kernels_take_a_bit_each_and_equal_states_give_equal_bytes(tmp_path):
    torch.manual_seed(0)
    model, images = resnet20(), torch.randn(2, 3, 16, 16)
    binarizer = trained(model, images, budget=0.25, layers="inner")
    for name in ("one", "other"):
        pack(model.state_dict(), binarizer.half_ranges, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    found = unpack(tmp_path / "one")
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())
    tensors, _ = from_bytes((tmp_path / "one").read_bytes())
    weights = [found[f"{name}.weight"] for name in binarizer.half_ranges]
    live = sum(int(weight.count_nonzero()) for weight in weights)
    assert len(tensors["signs"].data) == -(-live // 8)
    assert len(tensors["masks"].data) <= sum(weight.numel() // 9 for weight in weights) / 8 + 1


def test_a_file_is_one_of_safetensors_and_unpacks_to_its_bytes(tmp_path):
    """The package is an independent reference of the format."""
    safetensors = pytest.importorskip("safetensors.torch")
    weight = torch.tensor([[0.5, -0.5], [0.0, 0.5]])
    state = {"a.weight": weight, "a.bias": torch.ones(2, dtype=torch.bfloat16), "ü.n": torch.tensor(3)}
    state |= {"empty": torch.zeros(0, 3), "on": torch.tensor([True]), "small": torch.ones(3, dtype=torch.int8)}
    pack(state, {"a": 0.5}, tmp_path / "packed")
    assert set(safetensors.load_file(tmp_path / "packed")) == set(PARTS)
    assert to_bytes(read_packed(tmp_path / "packed")) == safetensors.save(state)


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@st.composite
def states(draw):
    """States with binary layers of any dtype and shape, of which whole kernels or single weights are 0."""
    state, half_ranges = {}, {}
    for number in range(draw(st.integers(0, 3))):
        shape = draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))
        dtype, h = draw(st.sampled_from(DTYPES)), draw(st.floats(1e-3, 1e3))
        generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
        weight = torch.randn(shape, generator=generator).sign().to(dtype) * h
        if draw(st.booleans()):
            by = shape[:2] + [1] * len(shape[2:]) if draw(st.booleans()) else shape
            weight = weight * (torch.rand(by, generator=generator) < 0.5)
        state[f"layer{number}.weight"], half_ranges[f"layer{number}"] = weight, h
    for number in range(draw(st.integers(0, 3))):
        dtype = draw(st.sampled_from([*DTYPES, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn]))
        state[f"other{number}"] = torch.randn(draw(st.lists(st.integers(0, 3), max_size=3))).to(dtype)
    return state, half_ranges


@settings(max_examples=60, deadline=None)
@given(case=states())
def test_every_state_comes_back_to_the_bit(case, tmp_path_factory):
    state, half_ranges = case
    path = tmp_path_factory.mktemp("case") / "packed"
    pack(state, half_ranges, path)
    found = unpack(path)
    assert set(found) == set(state)
    for name, tensor in state.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        as_bytes = [each.contiguous().reshape(-1).view(torch.uint8) for each in (found[name], tensor)]
        if name.removesuffix(".weight") in half_ranges:
            assert torch.equal(found[name], tensor)  # -0.0 comes back as 0.0
        else:
            assert torch.equal(*as_bytes)


@pytest.mark.parametrize(
    ("state", "half_ranges", "said"),
    [
        ({"a.weight": torch.tensor([0.5, 0.25, 0.0])}, {"a": 0.5}, r"a\.weight: 1 of 3 weights are not -h, 0 or \+h"),
        ({"a.weight": torch.tensor([0.5, torch.nan])}, {"a": 0.5}, "1 of 2 weights"),
        ({"a.weight": torch.ones(2)}, {"b": 1.0}, r"layer b: there is no tensor b\.weight"),
        ({"a.weight": torch.ones(2)}, {"a": 0.0}, r"h is 0\.0, which is not a positive number in F32"),
        ({"a.weight": torch.ones(2)}, {"a": 1e39}, "not a positive number in F32"),
        ({"a.weight": torch.ones(2, dtype=torch.int8)}, {"a": 1.0}, "its dtype is I8, binary weights are"),
        ({"extra": {"not": "a tensor"}}, {}, "extra: only dense tensors of numbers can be packed, this is dict"),
        ({"a": torch.ones(2, 2).to_sparse()}, {}, "sparse"),
    ],
)
def test_what_cannot_be_packed_is_named_and_nothing_is_written(tmp_path, state, half_ranges, said):
    with pytest.raises(ValueError, match=said):
        pack(state, half_ranges, tmp_path / "packed")
    assert list(tmp_path.iterdir()) == []


# Files that are not valid.


@pytest.fixture
def content(tmp_path) -> bytes:
    """A small file with all parts."""
    weight = torch.tensor([[0.5, -0.5], [0.0, 0.5]])
    pack({"a.weight": weight, "b": torch.arange(3)}, {"a": 0.5}, tmp_path / "whole")
    return (tmp_path / "whole").read_bytes()


def test_every_damaged_byte_and_every_cut_is_refused(content):
    for place in range(len(content)):
        for bit in (1, 0x10, 0x80):
            damaged = content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]
            with pytest.raises(ValueError) as refused:
                from_packed(damaged)
            assert "\n" not in str(refused.value)
        with pytest.raises(ValueError):
            from_packed(content[:place])
    with pytest.raises(ValueError):
        from_packed(content + b"\0")


def test_a_file_is_named_in_what_is_said_of_it(tmp_path, content):
    plain = to_bytes({"a": RawTensor("U8", (1,), b"\0")})
    later = content.replace(b'"version":"1"', b'"version":"2"')
    cases = {
        "empty": (b"", "empty file"),
        "text": (b"some text that is no such file", "shorter than its header would be"),
        "other": (plain, f"is not a file of packed weights: its metadata do not name the format {FORMAT}"),
        "later": (later, "has version '2' of the format, this bbnet reads version 1"),
    }
    for name, (written, said) in cases.items():
        path = tmp_path / name
        path.write_bytes(written)
        with pytest.raises(ValueError) as refused:
            unpack(path)
        assert str(refused.value).startswith(f"{path}: ")
        assert said in str(refused.value)


def forged(index: object, *, compressed: bytes | None = None, **parts: bytes) -> bytes:
    """A file with a valid checksum and an index that may lie."""
    text = index if isinstance(index, bytes) else json.dumps(index).encode()
    parts = dict.fromkeys(PARTS, b"") | parts
    parts["index"] = zlib.compress(text) if compressed is None else compressed
    checksum = 0
    for name in PARTS:
        checksum = zlib.crc32(parts[name], checksum)
    sizes = {"U8": 1, "F64": 8}
    tensors = {
        name: RawTensor(dtype, (len(parts[name]) // sizes[dtype],), parts[name]) for name, dtype in PARTS.items()
    }
    return to_bytes(tensors, {"format": FORMAT, "version": str(VERSION), "crc32": f"{checksum:08x}"})


SCALE = struct.pack("<d", 0.5)
HUGE = 1 << 40


@pytest.mark.parametrize(
    ("index", "parts", "said"),
    [
        ([["a", "F32", [HUGE]]], {}, "rest has 0 bytes, by its index it would have"),
        ([["a.weight", "F32", [HUGE, 1], 0]], {"scales": SCALE}, "signs has 0 bytes"),
        ([["a.weight", "F32", [HUGE, 1], 1]], {"scales": SCALE}, "masks has 0 bytes"),
        ([["a.weight", "F32", [1, 1, HUGE], HUGE]], {"scales": SCALE, "masks": b"\0"}, "cannot be a binary weight"),
        (
            [["a.weight", "F32", [1, 8], 1]],
            {"scales": SCALE, "masks": b"\xff"},
            "signs has 0 bytes, .* it would have 1",
        ),
        ([["a.weight", "F32", [1, 8], 0]], {"signs": b"\xff"}, "scales has 0 bytes"),
        ([["a.weight", "F32", [1, 8], 0]], {"signs": b"\0", "scales": struct.pack("<d", float("nan"))}, "h is nan"),
        ([["a.weight", "F32", [1, 8], 3]], {"scales": SCALE}, "cannot be a binary weight"),
        ([["a.weight", "F32", [1, 8], True]], {"scales": SCALE}, "cannot be a binary weight"),
        ([["a.weight", "I64", [1, 8], 0]], {"scales": SCALE}, "cannot be a binary weight"),
        ([["a", "U8", [1]], ["a", "U8", [1]]], {"rest": b"\0\0"}, "names in its index are not in order"),
        ([["a", "U8", [-1]]], {}, r"shape \[-1\] is not a list of lengths"),
        ([["a", "U8", [1] * 65]], {"rest": b"\0"}, "is not a list of lengths"),
        ([["a", "U8", [int("9" * 1000)]]], {}, "is not a list of lengths"),
        ([["a", "U9", [1]]], {}, "unknown dtype 'U9'"),
        ([["a", ["U8"], [1]]], {}, "unknown dtype"),
        ([[3, "U8", [1]]], {"rest": b"\0"}, "3 is no name"),
        ([["a", "U8"]], {}, "index cannot be read"),
        ([["a", "U8", [1]]], {"rest": b"\0\0"}, "rest has 2 bytes, by its index it would have 1"),
        ({"a": 1}, {}, "index cannot be read"),
        (7, {}, "index cannot be read"),
        (b"[" * 100_000, {}, "index cannot be read"),
        (b"9" * 10_000, {}, "index cannot be read"),
        (b"\xff", {}, "index cannot be read"),
        (None, {"compressed": b"no zlib"}, "index cannot be read"),
        (None, {"compressed": zlib.compress(b"[]")[:-3]}, "it is cut or larger than"),
        (None, {"compressed": zlib.compress(b" " * (20 * LARGEST_INDEX))}, "it is cut or larger than"),
    ],
)
def test_a_file_that_lies_is_refused_before_memory_is_allocated(index, parts, said):
    content = forged(index, **parts)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=said) as refused:
            from_packed(content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * LARGEST_INDEX
    assert len(str(refused.value)) < 300 and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"[]", "not a map"),
        (b"{", "not JSON"),
        (b"[" * 50_000, "not JSON"),
        (b'{"a": 1}', "lacks dtype"),
        (b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0]}}', "are not two places"),
        (b'{"a": {"dtype": "U8", "shape": [9], "data_offsets": [0, 9]}}', "has 9 bytes by its shape"),
        (b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}', "have 1 bytes, and 2 follow"),
        (b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}', "overlap, or there are gaps"),
        (b'{"__metadata__": {"a": 1}}', "metadata are not texts"),
    ],
)
def test_headers_that_lie_are_refused(header, said):
    with pytest.raises(ValueError, match=said):
        from_bytes(struct.pack("<Q", len(header)) + header + b"\0\0")


def test_an_index_that_could_not_be_read_again_is_not_written(tmp_path):
    state = {f"{number:0100}": torch.zeros(0) for number in range(LARGEST_INDEX // 100)}
    with pytest.raises(ValueError, match="tensors take more than"):
        pack(state, {}, tmp_path / "packed")


def test_kernels_that_are_too_large_for_a_bit_have_one_per_weight(tmp_path):
    weight = torch.ones(4, 3, 9, 9)
    weight[1] = 0
    pack({"weight": weight}, {"": 1.0}, tmp_path / "packed")
    assert torch.equal(unpack(tmp_path / "packed")["weight"], weight)
    tensors, _ = from_bytes((tmp_path / "packed").read_bytes())
    assert len(tensors["masks"].data) == np.ceil(weight.numel() / 8)
