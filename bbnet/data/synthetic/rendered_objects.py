"""Renders objects of ten classes, in CIFAR's own layout or in a folder per class. Equal arguments give equal files.

Shapes are drawn in a square from -1 to 1, x to the right and y down. All classes draw their colours from the same
distribution, so only the shape tells the class.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray
from PIL import Image, ImageDraw, ImageFilter

from bbnet.data.process import cores, worker_pool
from bbnet.data.progress import track

OVERSAMPLING = 3
SPLITS = ("train", "val", "test")
IMAGES, ORDER = range(2)
TRAINING_BATCHES = 5
AT_ONCE = 64
CIRCLE = np.stack([np.cos(angles := np.linspace(0, 2 * np.pi, 25)[:-1]), np.sin(angles)], axis=1)


@dataclass(frozen=True)
class Shot:
    """An image to render: which one it is, by split, label and number, its size in pixels and its difficulty."""

    seed: int
    split: int
    label: int
    number: int
    size: int
    difficulty: float


def write_batches(
    target: Path, *, seed: int, size: int, counts: Mapping[str, Sequence[int]], difficulty: float
) -> None:
    """Writes data_batch_1 to 5 with the images of train, then those of val, and test_batch and batches.meta.

    Args:
        size: 32, the height and width that this layout has.
        counts: number of images of each class, by split: train, val and test.
        difficulty: strength of pose, clutter, occlusion, light and noise, from 0 to 1.
    """
    shots = {split: _shuffled(shots, seed) for split, shots in _shots(seed, size, counts, difficulty).items()}
    training = [*shots["train"], *shots["val"]]
    parts = [training[start:end] for start, end in _fifths(len(training))]
    named = {f"data_batch_{number}": part for number, part in enumerate(parts, 1)} | {"test_batch": shots["test"]}
    target.mkdir(parents=True, exist_ok=True)
    images = iter(_rendered([shot for part in named.values() for shot in part]))
    for name, part in named.items():
        pixels = np.stack([next(images).transpose(2, 0, 1).ravel() for _ in part])
        kind, _, number = name.partition("_batch")
        batch = {
            "batch_label": f"training batch {number.lstrip('_')} of 5" if kind == "data" else "testing batch 1 of 1",
            "labels": [shot.label for shot in part],
            "data": pixels,
            "filenames": [f"{CLASSES[shot.label]}_{SPLITS[shot.split]}_{shot.number:06d}.png" for shot in part],
        }
        (target / name).write_bytes(as_python_2_pickle(batch))
    meta = {"num_cases_per_batch": len(parts[0]), "label_names": list(CLASSES), "num_vis": 3 * size**2}
    (target / "batches.meta").write_bytes(as_python_2_pickle(meta))


def write_folders(
    target: Path, *, seed: int, size: int, counts: Mapping[str, Sequence[int]], difficulty: float
) -> None:
    """Writes `{train,val,test}/{class}/{number}.png`. The arguments are those of `write_batches`."""
    shots = [shot for of_split in _shots(seed, size, counts, difficulty).values() for shot in of_split]
    for shot, image in zip(shots, _rendered(shots), strict=True):
        folder = target / SPLITS[shot.split] / CLASSES[shot.label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{shot.number:06d}.png")


def _shots(seed: int, size: int, counts: Mapping[str, Sequence[int]], difficulty: float) -> dict[str, list[Shot]]:
    return {
        split: [
            Shot(seed, place, label, number, size, difficulty)
            for label, images in enumerate(counts[split])
            for number in range(images)
        ]
        for place, split in enumerate(SPLITS)
    }


def _shuffled(shots: list[Shot], seed: int) -> list[Shot]:
    order = np.random.default_rng((seed, ORDER, shots[0].split)).permutation(len(shots))
    return [shots[place] for place in order]


def _fifths(images: int) -> list[tuple[int, int]]:
    ends = [round(images * part / TRAINING_BATCHES) for part in range(TRAINING_BATCHES + 1)]
    return list(zip(ends, ends[1:], strict=False))


def _rendered(shots: Sequence[Shot]) -> Any:
    """Yields the images, uint8 [size, size, 3], in the order of `shots`, rendered by a process per core."""
    groups = [shots[first : first + AT_ONCE] for first in range(0, len(shots), AT_ONCE)]
    with worker_pool(min(cores(), len(groups))) as pool:
        for images in track(pool.map(_render_all, groups), "render groups of images", total=len(groups)):
            yield from images


def _render_all(shots: Sequence[Shot]) -> list[ndarray]:
    return [render(shot) for shot in shots]


def as_python_2_pickle(value: Any) -> bytes:
    """Returns text, whole numbers, lists, dictionaries and arrays of uint8 as Python 2 pickled them, as in CIFAR."""
    return b"\x80\x02" + _token(value) + b"."


def _token(value: Any) -> bytes:
    if isinstance(value, dict):
        return b"}(" + b"".join(_token(one) for pair in value.items() for one in pair) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(_token, value)) + b"e"
    if isinstance(value, int):
        return b"K" + bytes([value]) if value < 256 else b"J" + struct.pack("<i", value)
    if isinstance(value, str):
        return _token(value.encode())
    if isinstance(value, bytes):
        return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    dtype = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"(" + b"".join(map(_token, value.shape)) + b"t"
    return empty + b"(K\x01" + shape + dtype + b"\x89" + _token(value.tobytes()) + b"tb"


# Shapes. Each function returns polygons with the number of their colour: 0 and 1 of the object, 2 is dark.

Part = tuple[ndarray, int]


def _box(left: float, top: float, right: float, bottom: float) -> ndarray:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def _ellipse(x: float, y: float, half_width: float, half_height: float) -> ndarray:
    return CIRCLE * (half_width, half_height) + (x, y)


def _hoop(x: float, y: float, outer: float, inner: float, flatness: float = 1.0) -> ndarray:
    """Returns the outer edge, then the inner edge in the other direction, which leaves the hole free."""
    edges = [_ellipse(x, y, radius, radius * flatness) for radius in (outer, inner)]
    return np.concatenate([edges[0], edges[0][:1], edges[1][:1], edges[1][::-1]])


def _arrow(draw: Callable[..., float]) -> list[Part]:
    thick, head, wide = draw(0.12, 0.24), draw(0.5, 0.9), draw(0.45, 0.75)
    tip = 0.95 - head
    return [
        (
            np.array(
                [(-0.95, -thick), (tip, -thick), (tip, -wide), (0.95, 0), (tip, wide), (tip, thick), (-0.95, thick)]
            ),
            0,
        )
    ]


def _car(draw: Callable[..., float]) -> list[Part]:
    roof, wheel, front = draw(-0.55, -0.4), draw(0.18, 0.26), draw(0.2, 0.5)
    cabin = np.array([(-0.7, 0), (-0.45, roof), (front, roof), (front + 0.25, 0)])
    window = cabin * (0.72, 0.7) + (-0.03, -0.02)
    body = np.array([(-0.95, -0.05), (0.7, -0.05), (0.95, 0.1), (0.95, 0.38), (-0.95, 0.38)])
    return [
        (cabin, 0),
        (window, 1),
        (body, 0),
        (_ellipse(-0.52, 0.38, wheel, wheel), 2),
        (_ellipse(0.55, 0.38, wheel, wheel), 2),
    ]


def _chair(draw: Callable[..., float]) -> list[Part]:
    leg, seat, lean, width = draw(0.07, 0.12), draw(0.0, 0.2), draw(0.0, 0.15), draw(0.45, 0.6)
    back = np.array(
        [(-width - lean, -0.95), (-width - lean + 2 * leg, -0.95), (-width + 2 * leg, seat), (-width, seat)]
    )
    return [
        (back, 1),
        (_box(-width, seat, -width + 1.6 * leg, 0.95), 0),
        (_box(width - 1.6 * leg, seat, width, 0.95), 0),
        (_box(-width, seat - 0.02, width, seat + 0.2), 0),
    ]


def _cup(draw: Callable[..., float]) -> list[Part]:
    top, bottom, height = draw(0.5, 0.62), draw(0.32, 0.5), draw(0.6, 0.8)
    body = np.array([(-top, -height), (top, -height), (bottom, height), (-bottom, height)]) - (0.15, 0)
    radius = draw(0.32, 0.42)
    return [
        (_hoop(top - 0.1, 0, radius, 0.55 * radius), 0),
        (body, 0),
        (_ellipse(-0.15, height, bottom, 0.1), 0),
        (_ellipse(-0.15, -height, top, 0.16), 1),
    ]


def _fish(draw: Callable[..., float]) -> list[Part]:
    tall, tail = draw(0.32, 0.5), draw(0.3, 0.5)
    return [
        (np.array([(0.35, 0), (0.95, -tail), (0.8, 0), (0.95, tail)]), 1),
        (np.array([(-0.2, -0.7 * tall), (0.3, -tall - 0.25), (0.3, -0.5 * tall)]), 1),
        (_ellipse(-0.2, 0, 0.72, tall), 0),
        (_ellipse(-0.62, -0.12, 0.08, 0.08), 2),
    ]


def _house(draw: Callable[..., float]) -> list[Part]:
    wide, eaves, door = draw(0.55, 0.75), draw(-0.25, 0.0), draw(-0.3, 0.15)
    return [
        (_box(0.25, -0.9, 0.45, -0.2), 1),
        (_box(-wide, eaves, wide, 0.9), 0),
        (np.array([(-wide - 0.2, eaves), (0, -0.95), (wide + 0.2, eaves)]), 1),
        (_box(door, 0.35, door + 0.28, 0.9), 2),
        (_box(-0.45, eaves + 0.15, -0.2, eaves + 0.4), 2),
    ]


def _key(draw: Callable[..., float]) -> list[Part]:
    bow, thick, tooth = draw(0.34, 0.46), draw(0.07, 0.12), draw(0.2, 0.34)
    return [
        (_hoop(-0.55, 0, bow, 0.5 * bow), 0),
        (_box(-0.6 + bow, -thick, 0.95, thick), 0),
        (_box(0.75, 0, 0.95, tooth + thick), 0),
        (_box(0.42, 0, 0.6, tooth), 0),
    ]


def _ring(draw: Callable[..., float]) -> list[Part]:
    return [(_hoop(0, 0, 0.9, draw(0.5, 0.68), draw(0.75, 1.0)), 0)]


def _star(draw: Callable[..., float]) -> list[Part]:
    points, inner = int(draw(5, 7)), draw(0.36, 0.5)
    angles = np.arange(2 * points) * np.pi / points - np.pi / 2
    radii = np.where(np.arange(2 * points) % 2, inner, 0.98)
    return [(np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None], 0)]


def _tree(draw: Callable[..., float]) -> list[Part]:
    trunk, wide = draw(0.08, 0.15), draw(0.5, 0.7)
    if draw(0, 1) < 0.5:
        layers = [
            np.array([(-wide * s, bottom), (0, bottom - 0.75), (wide * s, bottom)])
            for s, bottom in ((1, 0.5), (0.8, 0.1), (0.6, -0.25))
        ]
    else:
        layers = [_ellipse(x * wide, y, 0.62 * wide, 0.42) for x, y in ((-0.5, 0.05), (0.5, 0.05), (0, -0.45))]
    return [(_box(-trunk, 0.2, trunk, 0.95), 1), *((layer, 0) for layer in layers)]


SHAPES = {
    "arrow": _arrow,
    "car": _car,
    "chair": _chair,
    "cup": _cup,
    "fish": _fish,
    "house": _house,
    "key": _key,
    "ring": _ring,
    "star": _star,
    "tree": _tree,
}
CLASSES = tuple(SHAPES)


def render(shot: Shot) -> ndarray:
    """Renders an image, uint8 [size, size, 3]."""
    rng = np.random.default_rng((shot.seed, IMAGES, shot.split, shot.label, shot.number))
    hard, side = shot.difficulty, shot.size * OVERSAMPLING

    def draw(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    background = rng.uniform(20, 235, 3)
    canvas = Image.new("RGB", (side, side), _shown(background))
    pen = ImageDraw.Draw(canvas)

    def fill(points: ndarray, colour: ndarray) -> None:
        pen.polygon(((points + 1) * (side / 2)).ravel().tolist(), fill=_shown(colour))

    for _ in range(rng.poisson(10 * hard)):
        fill(_scrap(rng, hard), rng.uniform(0, 255, 3))
    colours = [_apart_from(background, rng, 110 - 70 * hard) for _ in range(2)]
    colours.append(0.25 * colours[0])
    place = _pose(rng, hard)
    for points, number in SHAPES[CLASSES[shot.label]](draw):
        fill(place(points), colours[number])
    for _ in range(rng.binomial(3, 0.5 * hard)):
        fill(0.8 * _scrap(rng, hard), rng.uniform(0, 255, 3))
    picture = canvas.resize((shot.size, shot.size), Image.Resampling.BOX)
    blur = draw(0, 0.8 * hard)
    if blur > 0.2:
        picture = picture.filter(ImageFilter.GaussianBlur(blur * shot.size / 32))
    return _exposed(np.asarray(picture, dtype=np.float32), rng, hard)


def _shown(colour: ndarray) -> tuple[int, ...]:
    return tuple(int(value) for value in colour)


def _apart_from(other: ndarray, rng: np.random.Generator, distance: float) -> ndarray:
    """Draws a colour at least `distance` from another one, in units of one of 255 steps of a channel."""
    while True:
        colour = rng.uniform(0, 255, 3)
        if np.linalg.norm(colour - other) >= distance:
            return colour


def _scrap(rng: np.random.Generator, hard: float) -> ndarray:
    """Draws a random bar or blob, which belongs to no object."""
    corners = np.sort(rng.uniform(0, 2 * np.pi, 5))
    radii = rng.uniform(0.05, 0.15 + 0.35 * hard, 2)
    return np.stack([np.cos(corners), np.sin(corners)], axis=1) * radii + rng.uniform(-1, 1, 2)


def _pose(rng: np.random.Generator, hard: float) -> Callable[[ndarray], ndarray]:
    """Draws rotation, foreshortening, shear, size, side and position of an object, and returns the function of them."""
    angle, scale = rng.normal(0, 0.6 * hard), rng.uniform(0.9 - 0.55 * hard, 0.9)
    cos, sin = np.cos(angle), np.sin(angle)
    across = rng.uniform(1 - 0.5 * hard, 1) * rng.choice((-1, 1))
    skew = np.array([[across, rng.normal(0, 0.3 * hard)], [0, 1]])
    matrix = scale * np.array([[cos, -sin], [sin, cos]]) @ skew
    shift = rng.uniform(-1, 1, 2) * (1 - scale)
    return lambda points: points @ matrix.T + shift


def _exposed(pixels: ndarray, rng: np.random.Generator, hard: float) -> ndarray:
    """Applies gain, tint, a gradient of light and sensor noise."""
    across = np.linspace(-1, 1, len(pixels), dtype=np.float32)
    slope = rng.normal(0, 0.3 * hard, 2)
    light = 1 + slope[0] * across + slope[1] * across[:, None]
    gain = rng.uniform(1 - 0.5 * hard, 1 + 0.3 * hard) * rng.normal(1, 0.08 * hard, 3)
    noise = rng.standard_normal(pixels.shape, dtype=np.float32) * (2 + 30 * hard * rng.random())
    return np.clip(pixels * (light[..., None] * gain) + noise, 0, 255).astype(np.uint8)
