"""Renders synthetic faces in the layout of the face pack, from the parameters of an identity and of a single shot.

Positions are (x, y): the centre of the face is at (0, 0), x points right, y points down, image edges are at -1 and 1.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy import ndarray
from PIL import Image, ImageDraw, ImageFilter

from bbnet.data.progress import track

NOBODY = "n000000"
OVERSAMPLING = 3
JPEG_QUALITY = 92
LARGEST_NAME = 999_999
IDENTITIES, IMAGES, PROBE_ORDER = range(3)
ANGLES = np.linspace(0, 2 * np.pi, 33)[:-1]

SKIN = np.array([[244, 214, 192], [228, 184, 150], [198, 146, 108], [150, 102, 72], [92, 60, 44]], dtype=float)
HAIR = np.array(
    [[30, 26, 26], [66, 44, 32], [112, 74, 42], [196, 158, 96], [150, 70, 40], [172, 170, 168]], dtype=float
)
IRIS = np.array([[70, 48, 34], [96, 120, 150], [86, 116, 80], [48, 36, 30]], dtype=float)
LIPS = np.array([[196, 104, 104], [164, 84, 80], [178, 116, 100]], dtype=float)
FRAMES = np.array([[30, 30, 32], [110, 60, 40], [150, 150, 156], [140, 30, 40]], dtype=float)
WHITE_OF_EYE = np.array([240.0, 238.0, 234.0])
HAIR_STYLES = ("bald", "short", "fringe", "parted", "long", "bob", "high")
GLASSES = ("none", "none", "round", "square")
BEARDS = ("none", "none", "none", "moustache", "full")


@dataclass(frozen=True, eq=False)
class Identity:
    """Parameters shared by all images of a person; lengths have the unit of positions."""

    skin: ndarray
    hair: ndarray
    iris: ndarray
    lips: ndarray
    frame: ndarray
    style: str
    volume: float
    glasses: str
    beard: str
    half_width: float
    half_height: float
    squareness: float
    taper: float
    eye_distance: float
    eye_size: float
    eye_slant: float
    eye_height: float
    brow_thickness: float
    brow_slant: float
    brow_gap: float
    nose_length: float
    nose_width: float
    mouth_height: float
    mouth_width: float
    mouth_thickness: float
    ear_size: float


@dataclass(frozen=True, eq=False)
class Shot:
    """Parameters of a single image: pose, expression, background, light, occlusion and camera."""

    yaw: float
    pitch: float
    roll: float
    scale: float
    shift: ndarray
    smile: float
    open_mouth: float
    open_eyes: float
    background: ndarray
    background_slope: ndarray
    light: ndarray
    gain: float
    gamma: float
    tint: ndarray
    occluder: ndarray | None
    occluder_colour: ndarray
    blur: float
    noise: float


def write_face_pack(
    target: Path,
    *,
    seed: int,
    size: int,
    identities: int,
    train: int,
    zipf: float,
    val: int,
    test: int,
    gallery: int,
    gallery_images: int,
    probes: int,
    strangers: int,
) -> None:
    """Writes a face pack to `target`. Equal arguments give equal files.

    The pack has `classification/{train,dev,test}/{identity}/*.jpg` and, in `verification`, `known/{identity}/*.jpg`,
    `unknown_{dev,test}/*.jpg` and `verification_{dev,test}.csv` (file, label). Training images per identity follow
    Zipf's law. Nobody in `verification` is in `classification`, and strangers (label n000000) are not in the gallery.

    Args:
        size: height and width of an image in pixels.
        identities: number of people to classify, with `train` images in total and `val` and `test` images each.
        gallery: number of people in the gallery, with `gallery_images` each, and `probes` in each of dev and test.
        strangers: number of people outside the gallery in each of dev and test, with one image each.
    Raises: ValueError if there are fewer than two training images per identity.
    """
    counts = training_counts(identities, train, zipf)
    people = iter(_people(seed))
    shots = []
    for count, (name, who, camera) in zip(counts, people, strict=False):
        for folder, images in (("train", count), ("dev", val), ("test", test)):
            directory = target / "classification" / folder / name
            shots += [(directory / f"{number:04d}.jpg", who, camera) for number in range(1, images + 1)]
    labels: dict[str, list[tuple[str, Identity, np.random.Generator]]] = {"dev": [], "test": []}
    for _, (name, who, camera) in zip(range(gallery), people, strict=False):
        directory = target / "verification" / "known" / name
        shots += [(directory / f"{number:04d}.jpg", who, camera) for number in range(1, gallery_images + 1)]
        for rows in labels.values():
            rows += [(name, who, camera)] * probes
    for rows in labels.values():
        rows += [(NOBODY, who, camera) for _, (_, who, camera) in zip(range(strangers), people, strict=False)]
    tables = {}
    for number, (part, rows) in enumerate(labels.items()):
        order = np.random.default_rng((seed, PROBE_ORDER, number)).permutation(len(rows))
        files = [f"{place:06d}.jpg" for place in range(len(rows))]
        directory = target / "verification" / f"unknown_{part}"
        shots += [(directory / file, *rows[row][1:]) for file, row in zip(files, order, strict=True)]
        tables[part] = [(file, rows[row][0]) for file, row in zip(files, order, strict=True)]
    for folder in (
        "classification/train",
        "verification/known",
        "verification/unknown_dev",
        "verification/unknown_test",
    ):
        (target / folder).mkdir(parents=True, exist_ok=True)
    for path, who, camera in track(shots, "render"):
        path.parent.mkdir(parents=True, exist_ok=True)
        render(who, _take_shot(camera), size, camera).save(path, quality=JPEG_QUALITY)
    for part, rows in tables.items():
        with (target / "verification" / f"verification_{part}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([("file", "label"), *rows])


def training_counts(identities: int, images: int, zipf: float) -> list[int]:
    """Returns the number of images of each identity: 2, plus a share of the rest proportional to rank^-zipf."""
    rest = images - 2 * identities
    if rest < 0:
        raise ValueError(f"data.train {images} is below two images for each of {identities} identities")
    shares = np.arange(1.0, identities + 1) ** -zipf
    ends = np.round(np.cumsum(shares) / shares.sum() * rest).astype(int)
    return (2 + np.diff(ends, prepend=0)).tolist()


def _people(seed: int) -> Iterator[tuple[str, Identity, np.random.Generator]]:
    """Yields the name, identity and random generator of each person."""
    for number in range(1, LARGEST_NAME + 1):
        who = _draw_identity(np.random.default_rng((seed, IDENTITIES, number)))
        yield f"n{number:06d}", who, np.random.default_rng((seed, IMAGES, number))


def _draw_identity(rng: np.random.Generator) -> Identity:
    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    def like(colours: ndarray, spread: float) -> ndarray:
        return np.clip(colours[rng.integers(len(colours))] + rng.normal(0, spread, 3), 0, 255)

    tone = between(0, len(SKIN) - 1.001)
    skin = SKIN[int(tone)] + (tone % 1) * (SKIN[int(tone) + 1] - SKIN[int(tone)])
    return Identity(
        skin=np.clip(skin + rng.normal(0, 6, 3), 0, 255),
        hair=like(HAIR, 10),
        iris=like(IRIS, 8),
        lips=0.6 * like(LIPS, 10) + 0.4 * skin,
        frame=like(FRAMES, 10),
        style=str(rng.choice(HAIR_STYLES)),
        volume=between(0.04, 0.18),
        glasses=str(rng.choice(GLASSES)),
        beard=str(rng.choice(BEARDS)),
        half_width=between(0.44, 0.6),
        half_height=between(0.6, 0.76),
        squareness=between(1.8, 3.2),
        taper=between(0.0, 0.35),
        eye_distance=between(0.18, 0.28),
        eye_size=between(0.07, 0.12),
        eye_slant=between(-0.03, 0.03),
        eye_height=between(-0.2, -0.08),
        brow_thickness=between(0.02, 0.07),
        brow_slant=between(-0.05, 0.05),
        brow_gap=between(0.1, 0.18),
        nose_length=between(0.18, 0.34),
        nose_width=between(0.05, 0.13),
        mouth_height=between(0.3, 0.42),
        mouth_width=between(0.14, 0.27),
        mouth_thickness=between(0.03, 0.075),
        ear_size=between(0.08, 0.16),
    )


def _take_shot(rng: np.random.Generator) -> Shot:
    hidden = rng.random() < 0.12
    return Shot(
        yaw=float(np.clip(rng.normal(0, 0.35), -0.9, 0.9)),
        pitch=float(np.clip(rng.normal(0, 0.3), -0.8, 0.8)),
        roll=float(rng.normal(0, 0.08)),
        scale=float(rng.uniform(0.9, 1.08)),
        shift=rng.normal(0, 0.04, 2),
        smile=float(rng.normal(0.02, 0.04)),
        open_mouth=float(max(0.0, rng.normal(-0.01, 0.04))),
        open_eyes=float(rng.uniform(0.45, 1.0)),
        background=rng.uniform(40, 230, 3),
        background_slope=rng.normal(0, 25, 2),
        light=rng.normal(0, 0.16, 2),
        gain=float(rng.uniform(0.75, 1.2)),
        gamma=float(rng.uniform(0.85, 1.2)),
        tint=rng.normal(1, 0.04, 3),
        occluder=rng.uniform((-0.6, -0.5, 0.18, 0.12), (0.6, 0.7, 0.4, 0.3)) if hidden else None,
        occluder_colour=rng.uniform(30, 220, 3),
        blur=float(rng.uniform(0.0, 0.9)),
        noise=float(rng.uniform(2, 8)),
    )


def render(who: Identity, shot: Shot, size: int, rng: np.random.Generator) -> Image.Image:
    """Renders an RGB image of `size` x `size` pixels; `rng` draws the sensor noise."""
    canvas = _Canvas(size * OVERSAMPLING, shot)
    _draw_back(canvas, who)
    _draw_head(canvas, who)
    _draw_features(canvas, who, shot)
    _draw_front(canvas, who)
    if shot.occluder is not None:
        x, y, half_width, half_height = shot.occluder
        canvas.fill(_ellipse(x, y, half_width, half_height), shot.occluder_colour)
    picture = canvas.image.resize((size, size), Image.Resampling.BOX)
    if shot.blur > 0:
        picture = picture.filter(ImageFilter.GaussianBlur(shot.blur * size / 64))
    return _expose(np.asarray(picture, dtype=float), shot, rng)


class _Canvas:
    """Draws shapes, whose positions are transformed by the pose."""

    def __init__(self, side: int, shot: Shot) -> None:
        across = np.linspace(-1, 1, side)
        slope = shot.background_slope[0] * across + shot.background_slope[1] * across[:, None]
        colours = np.clip(shot.background + slope[..., None], 0, 255).astype(np.uint8)
        self.image = Image.fromarray(colours)
        self.side = side
        self.draw = ImageDraw.Draw(self.image)
        turn = np.array([[np.cos(shot.roll), np.sin(shot.roll)], [-np.sin(shot.roll), np.cos(shot.roll)]])
        self.turn = shot.scale * turn
        self.shot = shot

    def fill(self, points: ndarray, colour: ndarray, depth: float = 0.0) -> None:
        """Fills a polygon [n, 2]. The larger its `depth`, the more it moves when the head turns."""
        self.draw.polygon(self._project(points, depth), fill=tuple(int(value) for value in colour))

    def line(self, points: ndarray, colour: ndarray, width: float, depth: float = 0.0) -> None:
        pixels = max(1, round(width * self.side / 2))
        self.draw.line(
            self._project(points, depth), fill=tuple(int(value) for value in colour), width=pixels, joint="curve"
        )

    def _project(self, points: ndarray, depth: float) -> list[tuple[float, float]]:
        turned = points * [1 - 0.12 * abs(self.shot.yaw), 1 - 0.06 * abs(self.shot.pitch)]
        turned = turned + depth * np.array([np.sin(self.shot.yaw), np.sin(self.shot.pitch)])
        placed = turned @ self.turn.T + self.shot.shift
        return [tuple(point) for point in (placed + 1) * (self.side / 2)]


def _ellipse(x: float, y: float, half_width: float, half_height: float, squareness: float = 2.0) -> ndarray:
    """Returns a superellipse as a polygon [32, 2]."""
    cos, sin = np.cos(ANGLES), np.sin(ANGLES)
    power = 2 / squareness
    rounded = np.stack([np.sign(cos) * np.abs(cos) ** power, np.sign(sin) * np.abs(sin) ** power], axis=1)
    return rounded * [half_width, half_height] + [x, y]


def _outline(who: Identity, grow: float = 0.0) -> ndarray:
    """Returns the outline of the head, which narrows towards the jaw."""
    points = _ellipse(0, 0, who.half_width + grow, who.half_height + grow, who.squareness)
    lower = np.clip(points[:, 1] / who.half_height, 0, None)
    return points * np.stack([1 - who.taper * lower**2, np.ones(len(points))], axis=1)


def _draw_back(canvas: _Canvas, who: Identity) -> None:
    """Draws the hair behind the head, the neck, shoulders and ears."""
    width, height = who.half_width, who.half_height
    if who.style in ("long", "bob"):
        bottom = 1.1 if who.style == "long" else 0.45
        reach = width + who.volume
        back = [(-reach, -0.3 * height), (reach, -0.3 * height), (reach, bottom), (-reach, bottom)]
        canvas.fill(np.array(back), 0.85 * who.hair, -0.05)
    canvas.fill(np.array([(-0.2, 0.4), (0.2, 0.4), (0.24, 1.3), (-0.24, 1.3)]), 0.82 * who.skin)
    canvas.fill(_ellipse(0, 1.35, 0.95, 0.42), 0.5 * who.frame + 60)
    for side in (-1, 1):
        canvas.fill(_ellipse(side * width, 0, 0.5 * who.ear_size, who.ear_size), 0.9 * who.skin, -0.03)


def _draw_head(canvas: _Canvas, who: Identity) -> None:
    width, height = who.half_width, who.half_height
    if who.style != "bald":
        lift = {"high": 0.22, "short": 0.02}.get(who.style, 0.08) + who.volume
        canvas.fill(_ellipse(0, -0.32 * height, width + 0.6 * who.volume, 0.68 * height + lift, 2.2), who.hair)
    face = _outline(who)
    if who.style != "bald":
        hairline = {"fringe": -0.36, "bob": -0.4, "parted": -0.58, "long": -0.55}.get(who.style, -0.62) * height
        face = np.stack([face[:, 0], np.maximum(face[:, 1], hairline)], axis=1)
    canvas.fill(face, who.skin)
    if who.style in ("parted", "long"):
        swept = np.array(
            [(-0.95 * width, -0.2 * height), (-0.8 * width, -0.75 * height), (0.35 * width, -0.8 * height)]
        )
        canvas.fill(swept, who.hair, 0.02)
    if who.beard == "full":
        beard = _outline(who, 0.02)
        canvas.fill(np.stack([beard[:, 0], np.maximum(beard[:, 1], 0.42 * height)], axis=1), who.hair, 0.02)


def _draw_features(canvas: _Canvas, who: Identity, shot: Shot) -> None:
    for side in (-1, 1):
        x, y = side * who.eye_distance, who.eye_height
        opening = 0.62 * who.eye_size * shot.open_eyes
        tilt = np.array([0, side * who.eye_slant])
        canvas.fill(_ellipse(x, y, who.eye_size, opening) + tilt, WHITE_OF_EYE, 0.12)
        gaze = 0.25 * who.eye_size * np.sin(shot.yaw)
        canvas.fill(_ellipse(x + gaze, y, 0.5 * who.eye_size, min(opening, 0.5 * who.eye_size)) + tilt, who.iris, 0.12)
        brow = np.array([(x - who.eye_size, y - who.brow_gap), (x + who.eye_size, y - who.brow_gap)])
        brow[:, 1] += [side * who.brow_slant, -side * who.brow_slant]
        canvas.line(brow, 0.75 * who.hair, who.brow_thickness, 0.12)
    tip = who.eye_height + who.nose_length
    nose = np.array([(-0.35 * who.nose_width, who.eye_height), (0.35 * who.nose_width, who.eye_height)])
    nose = np.concatenate([nose, [(who.nose_width, tip), (-who.nose_width, tip)]])
    canvas.fill(nose, 0.9 * who.skin, 0.16)
    canvas.fill(_ellipse(0, tip, who.nose_width, 0.4 * who.nose_width), 0.78 * who.skin, 0.2)
    _draw_mouth(canvas, who, shot)


def _draw_mouth(canvas: _Canvas, who: Identity, shot: Shot) -> None:
    if who.beard != "none":
        canvas.fill(_ellipse(0, who.mouth_height - 0.08, who.mouth_width, 0.05), who.hair, 0.12)
    mouth = _ellipse(0, who.mouth_height, who.mouth_width, who.mouth_thickness + shot.open_mouth)
    mouth[:, 1] -= shot.smile * (np.abs(mouth[:, 0]) / who.mouth_width) ** 2
    canvas.fill(mouth, who.lips, 0.1)
    if shot.open_mouth > 0.01:
        canvas.fill(_ellipse(0, who.mouth_height, 0.8 * who.mouth_width, shot.open_mouth), 0.3 * who.lips, 0.1)


def _draw_front(canvas: _Canvas, who: Identity) -> None:
    """Draws the fringe and glasses."""
    if who.style in ("fringe", "bob"):
        top, bottom = -0.8 * who.half_height, who.eye_height - 0.75 * who.brow_gap
        reach = 0.86 * who.half_width
        canvas.fill(np.array([(-reach, top), (reach, top), (reach, bottom), (-reach, bottom + 0.06)]), who.hair, 0.05)
    if who.glasses == "none":
        return
    radius = 1.55 * who.eye_size
    squareness = 2.0 if who.glasses == "round" else 5.0
    for side in (-1, 1):
        rim = _ellipse(side * who.eye_distance, who.eye_height, radius, 0.85 * radius, squareness)
        canvas.line(np.concatenate([rim, rim[:1]]), who.frame, 0.035, 0.14)
    inner = max(who.eye_distance - radius, 0.01)
    canvas.line(np.array([(-inner, who.eye_height), (inner, who.eye_height)]), who.frame, 0.035, 0.14)


def _expose(picture: ndarray, shot: Shot, rng: np.random.Generator) -> Image.Image:
    """Applies directional light, exposure, tint and noise to a picture [size, size, 3] of 0 to 255."""
    across = np.linspace(-1, 1, len(picture))
    light = 1 + shot.light[0] * across + shot.light[1] * across[:, None]
    exposed = 255 * (np.clip(picture * light[..., None] * shot.gain * shot.tint, 0, 255) / 255) ** shot.gamma
    noisy = exposed + rng.normal(0, shot.noise, exposed.shape)
    return Image.fromarray(np.clip(np.round(noisy), 0, 255).astype(np.uint8))
