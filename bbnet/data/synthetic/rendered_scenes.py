"""Renders scenes of several objects in the layout of VOC, with their boxes. Equal arguments give equal files.

Objects are those of `rendered_objects`, of seven classes that occur more or less often. All of them draw their colours
from the same distribution, and lie on a textured background among bars and blobs that belong to no object.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy import ndarray
from PIL import Image, ImageDraw, ImageFilter

from bbnet.data.process import cores, worker_pool
from bbnet.data.progress import track
from bbnet.data.synthetic.rendered_objects import SHAPES

FREQUENCIES = {"house": 0.34, "tree": 0.22, "car": 0.15, "star": 0.11, "fish": 0.09, "cup": 0.06, "key": 0.03}
CLASSES = tuple(FREQUENCIES)
SPLITS = ("train", "val", "test")
YEAR = "VOC2007"
MOST_OBJECTS = 4
SIDES = (0.19, 0.46)  # of an object, as shares of the image's longer edge
SIDES_OF_DIFFICULT = (0.08, 0.14)
SHORTEST_EDGE = 0.7  # of an image, as a share of the longer one
MOST_OUTSIDE = 0.2  # of the side of an object
MOST_OVERLAP = 0.15
TRIES = 20
OVERSAMPLING = 3
JPEG_QUALITY = 92
AT_ONCE = 64


@dataclass(frozen=True)
class Scene:
    """A scene to render: which one it is, the longer edge of the image, and the shares that `write_scenes` takes."""

    seed: int
    split: int
    number: int
    size: int
    difficult: float
    empty: float


@dataclass(frozen=True)
class Thing:
    """An object in a scene: its class, its box in pixels (left, top, right, bottom), and the flags of VOC."""

    name: str
    box: tuple[int, int, int, int]
    difficult: bool
    truncated: bool


def write_scenes(
    target: Path, *, seed: int, size: int, scenes: Mapping[str, int], difficult: float, empty: float
) -> None:
    """Writes `VOCdevkit/VOC2007` with the folders JPEGImages, Annotations and ImageSets/Main below `target`.

    The list trainval has the scenes of train, then those of val.

    Args:
        size: longer edge of the images in pixels.
        scenes: number of images by split: train, val and test.
        difficult: share of the objects that are small and marked as difficult.
        empty: share of the images that have no object.
    """
    home = target / "VOCdevkit" / YEAR
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    firsts = dict(zip(SPLITS, accumulate((scenes[split] for split in SPLITS), initial=1), strict=False))
    names = {split: [f"{firsts[split] + number:06d}" for number in range(scenes[split])] for split in SPLITS}
    wanted = [
        (Scene(seed, place, number, size, difficult, empty), home, name)
        for place, split in enumerate(SPLITS)
        for number, name in enumerate(names[split])
    ]
    groups = [wanted[first : first + AT_ONCE] for first in range(0, len(wanted), AT_ONCE)]
    with worker_pool(min(cores(), len(groups))) as pool:
        for _ in track(pool.map(_write_all, groups), "render groups of scenes", total=len(groups)):
            pass
    lists = names | {"trainval": names["train"] + names["val"]}
    for name, images in lists.items():
        text = "".join(f"{image}\n" for image in images)
        (home / "ImageSets" / "Main" / f"{name}.txt").write_text(text, encoding="utf-8")


def _write_all(wanted: Sequence[tuple[Scene, Path, str]]) -> None:
    for scene, home, name in wanted:
        image, things = render(scene)
        image.save(home / "JPEGImages" / f"{name}.jpg", quality=JPEG_QUALITY)
        annotation = as_annotation(f"{name}.jpg", image.size, things)
        (home / "Annotations" / f"{name}.xml").write_bytes(annotation)


def as_annotation(file: str, size: tuple[int, int], things: Sequence[Thing]) -> bytes:
    """Returns the XML of an image of `size` (width, height). Boxes are written as in VOC: pixels, counted from 1."""
    root = ElementTree.Element("annotation")
    for name, text in (("folder", YEAR), ("filename", file)):
        ElementTree.SubElement(root, name).text = text
    of_size = ElementTree.SubElement(root, "size")
    for name, value in zip(("width", "height", "depth"), (*size, 3), strict=True):
        ElementTree.SubElement(of_size, name).text = str(value)
    ElementTree.SubElement(root, "segmented").text = "0"
    for thing in things:
        node = ElementTree.SubElement(root, "object")
        flags = {"truncated": int(thing.truncated), "difficult": int(thing.difficult)}
        for name, value in {"name": thing.name, "pose": "Unspecified", **flags}.items():
            ElementTree.SubElement(node, name).text = str(value)
        box = ElementTree.SubElement(node, "bndbox")
        left, top, right, bottom = thing.box
        for name, value in {"xmin": left + 1, "ymin": top + 1, "xmax": right, "ymax": bottom}.items():
            ElementTree.SubElement(box, name).text = str(value)
    ElementTree.indent(root, "\t")
    return ElementTree.tostring(root)


def render(scene: Scene) -> tuple[Image.Image, list[Thing]]:
    """Renders an image, and returns it with its objects, in the order in which they were drawn."""
    rng = np.random.default_rng((scene.seed, scene.split, scene.number))
    short = round(scene.size * rng.uniform(SHORTEST_EDGE, 1))
    size = (scene.size, short) if rng.random() < 0.7 else (short, scene.size)
    canvas = _background(rng, size)
    pen = ImageDraw.Draw(canvas)
    for _ in range(rng.poisson(4)):
        _fill(pen, _scrap(rng, size, 0.12), rng.uniform(0, 255, 3))
    things: list[Thing] = []
    for _ in range(0 if rng.random() < scene.empty else rng.integers(1, MOST_OBJECTS + 1)):
        thing = _placed(rng, pen, scene, size, [other.box for other in things])
        if thing is not None:
            things.append(thing)
    for _ in range(rng.poisson(1)):
        _fill(pen, _scrap(rng, size, 0.04), rng.uniform(0, 255, 3))
    picture = canvas.resize(size, Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.5)))
    pixels = np.asarray(picture, dtype=np.float32) * rng.uniform(0.75, 1.2)
    pixels += rng.standard_normal(pixels.shape, dtype=np.float32) * rng.uniform(2, 10)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), things


def _background(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Returns a canvas of `OVERSAMPLING` times the size, with smooth spots of random width around a colour."""
    cells = rng.integers(3, 13, 2)
    spots = rng.uniform(20, 235, 3) + rng.normal(0, rng.uniform(5, 25), (*cells, 3)) + rng.normal(0, 12, (*cells, 1))
    small = Image.fromarray(np.clip(spots, 0, 255).astype(np.uint8))
    return small.resize((size[0] * OVERSAMPLING, size[1] * OVERSAMPLING), Image.Resampling.BICUBIC)


def _scrap(rng: np.random.Generator, size: tuple[int, int], largest: float) -> ndarray:
    """Draws a bar or a blob, [corners, 2] in pixels; its radii are at most `largest` of the longer edge."""
    corners = np.sort(rng.uniform(0, 2 * np.pi, 5))
    radii = rng.uniform(0.02, largest, 2) * max(size)
    return np.stack([np.cos(corners), np.sin(corners)], axis=1) * radii + rng.uniform(0, 1, 2) * size


def _placed(
    rng: np.random.Generator,
    pen: ImageDraw.ImageDraw,
    scene: Scene,
    size: tuple[int, int],
    boxes: Sequence[tuple[int, int, int, int]],
) -> Thing | None:
    """Draws an object where it hardly overlaps with `boxes`, and returns it; None if there is no such place."""
    name = CLASSES[rng.choice(len(CLASSES), p=list(FREQUENCIES.values()))]
    difficult = bool(rng.random() < scene.difficult)
    side = rng.uniform(*(SIDES_OF_DIFFICULT if difficult else SIDES)) * scene.size
    pose = _pose(rng)
    parts = [
        (points @ pose, number) for points, number in SHAPES[name](lambda low, high: float(rng.uniform(low, high)))
    ]
    extent = np.concatenate([points for points, _ in parts])
    low, high = extent.min(0), extent.max(0)
    scale = side / (high - low).max()
    lengths = (high - low) * scale
    outside = MOST_OUTSIDE * lengths
    for _ in range(TRIES):
        corner = rng.uniform(-outside, size - lengths + outside)
        ends = corner + lengths
        box = (*np.floor(np.maximum(corner, 0)).astype(int), *np.ceil(np.minimum(ends, size)).astype(int))
        if all(_overlap(box, other) < MOST_OVERLAP for other in boxes):
            break
    else:
        return None
    colours = [rng.uniform(0, 255, 3) for _ in range(2)]
    colours.append(0.25 * colours[0])
    for points, number in parts:
        _fill(pen, (points - low) * scale + corner, colours[number])
    truncated = bool((corner < 0).any() or (ends > size).any())
    return Thing(name, tuple(map(int, box)), difficult, truncated)


def _pose(rng: np.random.Generator) -> ndarray:
    """Draws a rotation, a foreshortening and a side of an object, as a matrix to multiply points with."""
    angle = rng.normal(0, 0.2)
    across = rng.uniform(0.75, 1) * rng.choice((-1, 1))
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[across, 0], [0, 1]]) @ np.array([[cos, sin], [-sin, cos]])


def _fill(pen: ImageDraw.ImageDraw, points: ndarray, colour: ndarray) -> None:
    pen.polygon((points * OVERSAMPLING).ravel().tolist(), fill=tuple(int(value) for value in colour))


def _overlap(box: tuple[int, ...], other: tuple[int, ...]) -> float:
    """Returns the share of the smaller of two boxes that the other one covers."""
    across = min(box[2], other[2]) - max(box[0], other[0])
    down = min(box[3], other[3]) - max(box[1], other[1])
    areas = [(one[2] - one[0]) * (one[3] - one[1]) for one in (box, other)]
    return max(across, 0) * max(down, 0) / min(areas)
