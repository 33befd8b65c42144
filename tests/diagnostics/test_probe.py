"""`bbnet.probe`: what it finds, by independent references, and that it leaves no trace. See also test_similarity.py."""

import copy
import csv
import subprocess
import sys
import tracemalloc
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

import bbnet
from bbnet.diagnostics.histogram import BINS, Histogram
from bbnet.diagnostics.images import animate, tiles


class Net(nn.Module):
    """Nested, with an activation that is used twice, batch norm, dropout and attention-like outputs (a tuple)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(
            OrderedDict(conv=nn.Conv2d(3, 8, 3, padding=1), norm=nn.BatchNorm2d(8), on=nn.ReLU(inplace=True))
        )
        self.act = nn.ReLU()
        self.drop = nn.Dropout(0.5)
        self.hidden = nn.Linear(8, 6)
        self.head = nn.Linear(6, 4)
        self.bound = nn.Tanh()
        self.spare = nn.Linear(2, 2)

    def forward(self, x):
        x = self.act(self.features(x).mean((2, 3)) - 0.1)
        return self.bound(5 * self.head(self.drop(self.act(self.hidden(x)))))


@pytest.fixture
def net():
    return Net()


@pytest.fixture
def images():
    return torch.randn(5, 3, 12, 20, generator=torch.Generator().manual_seed(1))


def rows_of(probe, **wanted):
    return [row for row in probe.activations() if all(row[key] == value for key, value in wanted.items())]


def hooks_left(model):
    return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.modules())


def test_the_model_is_the_same_afterwards(net, images, same):
    """Faults 2, 3, 7 and 10: modes, names, the parameters themselves, hooks that accumulate."""
    net.train()
    net.features.norm.eval()  # a frozen norm must stay in evaluation mode
    modes = {name: each.training for name, each in net.named_modules()}
    state, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    parameters = dict(net.named_parameters())
    for _ in range(2):
        bbnet.probe(net, images, similarity=1, against=copy.deepcopy(net), maps=2)
    assert {name: each.training for name, each in net.named_modules()} == modes
    assert same(net.state_dict(), state) and torch.equal(torch.get_rng_state(), random)
    assert all(parameters[name] is each for name, each in net.named_parameters())
    assert hooks_left(net) == 0 and all(each.grad is None for each in net.parameters())
    torch.jit.script(net.hidden)


def test_nothing_is_left_behind_by_a_forward_pass_that_fails(net):
    with pytest.raises(RuntimeError):
        bbnet.probe(net.train(), torch.randn(5, 4, 12, 20))
    assert hooks_left(net) == 0 and all(each.training for each in net.modules())


def test_layers_at_any_depth_are_named_by_patterns(net, images):
    """Fault 4: a module inside another one; one without a weight."""
    found = bbnet.probe(net, images, ["features.*", "head"])
    assert [row["layer"] for row in found.activations()] == ["features.conv", "features.norm", "features.on", "head"]
    assert {row["parameter"] for row in found.weights()} == {
        *(f"features.{name}" for name in ("conv.weight", "conv.bias", "norm.weight", "norm.bias")),
        "head.weight",
        "head.bias",
    }
    assert bbnet.probe(net, images).not_called == ["spare"]
    with pytest.raises(ValueError, match=r"'encoder\.\*' matches no layer"):
        bbnet.probe(net, images, ["head", "encoder.*"])
    with pytest.raises(ValueError, match="no inputs"):
        bbnet.probe(net, [])


def test_a_layer_that_is_used_twice_is_told_apart(net, images):
    first, second = rows_of(bbnet.probe(net, images, "act"), layer="act")
    assert (first["call"], second["call"]) == (0, 1)
    assert (first["units"], second["units"]) == (8, 6)


def test_statistics_are_those_of_all_outputs(net, images):
    """In two batches as in one; what an in-place module does later does not count."""
    outputs = {}

    def keep(name, output):
        outputs[name] = output.detach().clone()

    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: keep(name, output))
        for name, module in net.named_modules()
        if name in ("features.norm", "features.on", "bound")
    ]
    net.eval()(images)
    for handle in handles:
        handle.remove()
    whole, parts = bbnet.probe(net, images), bbnet.probe(net, list(images.split([2, 3])))
    for name, output in outputs.items():
        for found in (whole, parts):
            (row,) = rows_of(found, layer=name)
            values = output.double()
            assert row["values"] == values.numel()
            assert row["mean"] == pytest.approx(float(values.mean()), rel=1e-5, abs=1e-7)
            assert row["std"] == pytest.approx(float(values.std(correction=0)), rel=1e-5)
            assert (row["smallest"], row["largest"]) == pytest.approx((float(values.min()), float(values.max())))
            assert row["zero_share"] == pytest.approx(float((values == 0).double().mean()))
    (row,) = rows_of(whole, layer="bound")
    assert row["saturated_share"] == pytest.approx(float((outputs["bound"].abs() >= 0.98).double().mean()))
    on = (outputs["features.on"] > 0).double().mean((0, 2, 3))
    rates = [row["on_rate"] for row in parts.units() if row["layer"] == "features.on"]
    assert rates == pytest.approx(on.tolist())
    assert rows_of(whole, layer="features.on")[0]["on_rate"] == pytest.approx(float(on.mean()))


def test_arguments_may_be_tuples_and_mappings_and_outputs_tuples():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, query, key):
            return self.attention(query, key, key)[0]

    x = torch.randn(2, 5, 8)
    for inputs in ((x, x), {"query": x, "key": x}):
        (row,) = rows_of(bbnet.probe(Two(), inputs, "attention"), layer="attention")
        assert (row["positions"], row["units"]) == (10, 8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_measured_in_float32(dtype):
    """The sum of squares of 400 overflows in float16."""
    model = nn.Sequential(nn.Linear(8, 64, dtype=dtype))
    with torch.no_grad():
        model[0].bias.fill_(400.0)
    (row,) = bbnet.probe(model, torch.zeros(64, 8, dtype=dtype), similarity=1).activations()
    assert (row["mean"], row["std"], row["non_finite"]) == (400.0, 0.0, 0)
    assert row["cosine"] == pytest.approx(1.0) and row["kl"] == pytest.approx(0.0, abs=1e-9)


def test_values_that_are_not_finite_are_counted_apart():
    model = nn.Sequential(nn.Identity())
    x = torch.tensor([[1.0, float("nan")], [float("inf"), 3.0]])
    (row,) = bbnet.probe(model, x).activations()
    assert (row["non_finite"], row["mean"], row["largest"]) == (2, 2.0, 3.0)


def test_of_masked_weights_live_entries_count():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = bbnet.sparsify(
        model, optimizer, [bbnet.Slab("0", "in", "0")], "sp_in", 0.25, total_steps=8, ramp_end=0, every=1
    )
    for _ in range(4):
        model(torch.randn(64, 32)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    before = copy.deepcopy(sparsifier.state_dict()["averages"][0]["joined"])
    found = bbnet.probe(model, torch.randn(8, 32))
    row = found.weights()[0]
    live = model[0].weight[sparsifier.masks()["0"]].detach().double()
    assert (row["live"], row["entries"], row["zero_share"]) == (128, 512, 0.0)
    assert row["std"] == pytest.approx(float(live.std(correction=0)))
    after = sparsifier.state_dict()["averages"][0]["joined"]
    assert all(torch.equal(after[name], before[name]) for name in before), "on-rates of the training are the same"
    counted = sum(each["count"] for each in found.histograms() if each["name"] == "0.weight")
    assert counted == 128


def test_clipped_weights_saturate_at_their_bound():
    model = nn.Linear(100, 10, bias=False)
    with torch.no_grad():
        model.weight.uniform_(-1, 1).clamp_(-0.5, 0.5)
    (row,) = bbnet.probe(model, torch.randn(2, 100)).weights()
    assert row["saturated_share"] == pytest.approx(0.5, abs=0.05)


def test_histograms_count_exactly_while_their_range_grows():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(5000, generator=generator) * torch.logspace(-3, 2, 5000)
    grown, at_once = Histogram(), Histogram()
    for part in values.split(100):
        grown.add(part)
    at_once.add(values)
    assert torch.equal(grown.counts, at_once.counts) and grown.power == at_once.power
    edges = np.linspace(-(2.0**grown.power), 2.0**grown.power, BINS + 1)
    expected = np.histogram(values.double().numpy(), edges)[0]
    assert grown.counts.tolist() == expected.tolist()
    assert sum(row["count"] for row in grown.rows()) == 5000
    for row in grown.rows():
        inside = (values >= row["low"]) & (values < row["high"])
        assert int(inside.sum()) == row["count"]


def test_memory_is_that_of_a_batch():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU())

    def batches(count):
        yield from (torch.randn(16, 4) for _ in range(count))

    bbnet.probe(model, batches(3))
    tracemalloc.start()
    found = bbnet.probe(model, batches(300))
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert rows_of(found, layer="1")[0]["positions"] == 4800
    assert grown < 50_000


def test_a_compiled_model_is_probed_too_and_stays_compiled():
    torch.compiler.reset()
    inner = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
    model = nn.Sequential(torch.compile(inner, backend="eager"), nn.Linear(8, 2))
    x = torch.randn(3, 4)
    before = model(x)
    found = bbnet.probe(model, x, "*.0")
    assert [row["positions"] for row in found.activations()] == [3]
    assert torch.equal(model(x), before)
    torch.compiler.reset()


# --- Feature maps ---------------------------------------------------------------------------------------------------


def test_feature_maps_have_the_size_and_the_orientation_of_the_features(net, images):
    """Fault 6: an image of 8 x 1 for maps of 32 x 32, and width and height exchanged."""
    found = bbnet.probe(net, images, "features.conv", maps=4)
    maps = found.maps["features.conv", 0]
    torch.testing.assert_close(torch.from_numpy(maps), net.features.conv(images)[0, :4].detach())
    pixels = tiles(np.arange(12, dtype=np.float32).reshape(1, 3, 4), 0, 11)
    assert pixels.shape == (3 * 16, 4 * 16)
    assert pixels[0, 0] == 0 and pixels[-1, -1] == 255 and pixels[0, -1] < pixels[-1, 0]
    assert tiles(np.zeros((5, 70, 90)), 0, 1).shape == (2 * 71 - 1, 3 * 91 - 1)


def test_tables_and_images_are_saved_with_their_step(net, images, tmp_path):
    """Fault 11: numbers in files, with the step, that runs can be compared by."""
    image = pytest.importorskip("PIL.Image")
    found = bbnet.probe(net, images, maps=4, against=net, step=7)
    found.save(tmp_path)
    names = {"activations", "weights", "units", "histograms", "alignment"}
    assert {path.stem for path in tmp_path.glob("*.csv")} == names
    for name in names:
        with (tmp_path / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == len(found.table(name)) > 0 and {row["step"] for row in rows} == {"7"}
    with image.open(tmp_path / "maps" / "features.conv-0.png") as opened:
        assert opened.size == (2 * 61 - 1, 2 * 37 - 1)  # maps of 12 x 20, three times as large
    with pytest.raises(ValueError, match="unknown table 'weight'"):
        found.table("weight")


def test_an_animation_has_a_frame_for_each_epoch(tmp_path):
    image = pytest.importorskip("PIL.Image")
    frames = [np.full((2, 8, 6), epoch, dtype=np.float32) for epoch in range(4)]
    animate(tmp_path / "features.gif", frames, fps=5)
    with image.open(tmp_path / "features.gif") as opened:
        assert (opened.n_frames, opened.info["duration"]) == (4, 200)
        shades = []
        for frame in range(4):
            opened.seek(frame)
            shades.append(opened.convert("L").getpixel((5, 5)))
    assert shades == [0, 85, 170, 255], "all frames have one scale of grey"


def test_frames_that_do_not_fit_are_refused_and_nothing_is_written(tmp_path):
    frames = [np.zeros((2, 8, 6)), np.zeros((2, 6, 8))]
    with pytest.raises(ValueError, match=r"frame 1 has maps of shape \[2, 6, 8\], the first \[2, 8, 6\]"):
        animate(tmp_path / "features.gif", frames)
    with pytest.raises(ValueError, match="no frames"):
        animate(tmp_path / "features.gif", [])
    with pytest.raises(ValueError, match=r"a \.gif or an \.mp4"):
        animate(tmp_path / "features.avi", frames[:1])
    assert list(tmp_path.iterdir()) == []


def test_an_mp4_is_written_where_imageio_ffmpeg_is_installed(tmp_path):
    frames = [np.random.default_rng(0).random((1, 33, 47)) for _ in range(6)]
    path = tmp_path / "features.mp4"
    try:
        import imageio_ffmpeg
    except ImportError:
        with pytest.raises(ImportError, match="install it, or write a .gif"):
            animate(path, frames)
        assert list(tmp_path.iterdir()) == []
        return
    animate(path, frames, fps=5)
    reader = imageio_ffmpeg.read_frames(str(path))
    assert next(reader)["size"] == (48, 34)
    assert len(list(reader)) == 6


WITHOUT = """
import sys

for name in ("pandas", "PIL", "matplotlib", "imageio_ffmpeg", "cv2", "torchvision"):
    sys.modules[name] = None  # is not found
import torch, bbnet
model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with bbnet.watch(model, optimizer) as watched:
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
watched.report()
found = bbnet.probe(model, torch.randn(2, 3, 8, 8), maps=2, similarity=1)
print(len(found.maps), len(found.activations()))
for call in (watched.to_frame, found.to_frame):
    try:
        call()
    except ImportError as error:
        print(error)
"""


def test_both_work_without_any_other_package():
    """Fault 8. The error of a table that needs a package names it."""
    result = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-3] == "2 2"
    assert result.stdout.count("to_frame needs pandas") == 2
