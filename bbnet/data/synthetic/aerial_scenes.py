"""Renders synthetic aerial scenes at two dates, between which buildings appear, in the layout of LEVIR-CD.

Lengths are in pixels. Positions are (x, y) on a canvas that extends `MARGIN` beyond the scene on every side, so that
shadows and buildings can reach into the scene and a misregistered picture has no empty border.
"""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy import ndarray
from PIL import Image, ImageDraw
from scipy import ndimage

from bbnet.data.progress import track

KINDS = ("A", "B", "label")

MARGIN = 8
OVERSAMPLING = 4
COVERED = 255
REFERENCE_SIZE = 64
SPLIT_STREAM = 0

BUILT_SHARE_CHANGED = (0.05, 0.16)
BUILT_SHARE_STANDING = (0.05, 0.13)
PATCH_SHARE = (0.02, 0.08)
CLEARANCE = 2.0
LARGE_BUILDINGS = 0.25
L_SHAPES = 0.3
DISAPPEARANCES = 0.08
LARGEST_CROWN = 3.2

GRASS, CROP, SOIL = range(3)
EARTH = np.array([152.0, 128.0, 98.0])
VEGETATION = np.array([78.0, 104.0, 58.0])
CROWN = np.array([50.0, 78.0, 42.0])
BARE_CROWN = np.array([112.0, 96.0, 78.0])
ASPHALT = np.array([118.0, 116.0, 116.0])
SHADE = np.array([0.40, 0.44, 0.52])
ROOFS = np.array(
    [[160, 98, 80], [138, 84, 68], [120, 118, 122], [92, 94, 102], [188, 184, 178], [150, 132, 112], [104, 122, 146]],
    dtype=float,
)
LOTS = np.array([[178, 154, 120], [150, 120, 92], [150, 146, 140], [190, 180, 160]], dtype=float)
CARS = np.array([[225, 225, 225], [45, 45, 50], [165, 45, 40], [60, 80, 140]], dtype=float)


@dataclass(frozen=True, eq=False)
class Rectangle:
    """A rotated rectangle; `along` is the unit vector in the direction of its length."""

    centre: ndarray
    along: ndarray
    length: float
    width: float

    @property
    def across(self) -> ndarray:
        return _quarter_turn(self.along)

    def corners(self, low: float = -1.0, high: float = 1.0) -> ndarray:
        """Returns the corners [4, 2] of the part that lies between `low` and `high` across, in half widths."""
        lengthwise = np.array([[-0.5], [0.5], [0.5], [-0.5]]) * self.length * self.along
        crosswise = np.array([[low], [low], [high], [high]]) * (self.width / 2) * self.across
        return self.centre + lengthwise + crosswise

    def grown(self, by: float) -> "Rectangle":
        return Rectangle(self.centre, self.along, self.length + 2 * by, self.width + 2 * by)

    def pixels(self) -> ndarray:
        """Returns int [n, 2]: the pixels under a grid of points in the rectangle that are at most one pixel apart."""
        lengths, widths = int(np.ceil(self.length)), int(np.ceil(self.width))
        u = (np.arange(lengths) + 0.5) * (self.length / lengths) - self.length / 2
        v = (np.arange(widths) + 0.5) * (self.width / widths) - self.width / 2
        samples = self.centre + u[:, None, None] * self.along + v[None, :, None] * self.across
        return np.floor(samples.reshape(-1, 2)).astype(int)


@dataclass(frozen=True, eq=False)
class Building:
    """A building of one or two rectangles; `stands` says whether it exists at each of the two dates."""

    wings: tuple[Rectangle, ...]
    colour: ndarray
    height: float
    gabled: bool
    stands: tuple[bool, bool]


@dataclass(frozen=True, eq=False)
class Patch:
    """An area of bare soil or pavement without a shadow; `lies` says whether it exists at each of the two dates."""

    area: Rectangle
    colour: ndarray
    lies: tuple[bool, bool]


@dataclass(frozen=True, eq=False)
class Terrain:
    """Parcels, roads and texture, the same at both dates: maps [side, side]; `kind` and `tone` [fields, ...]."""

    side: int
    along: ndarray
    field: ndarray
    kind: ndarray
    tone: ndarray
    rows: ndarray
    texture: ndarray
    road: ndarray


@dataclass(frozen=True, eq=False)
class Trees:
    centre: ndarray
    radius: ndarray
    evergreen: ndarray
    tone: ndarray


@dataclass(frozen=True, eq=False)
class Date:
    """The conditions of one photograph; `shadow` is the displacement of a shadow per unit of height."""

    shadow: ndarray
    vigour: float
    gain: float
    gamma: float
    tint: ndarray
    blur: float
    noise: float
    shift: ndarray

    @property
    def to_sun(self) -> ndarray:
        return -self.shadow / np.linalg.norm(self.shadow)


@dataclass(frozen=True, eq=False)
class Scene:
    terrain: Terrain
    buildings: list[Building]
    patches: list[Patch]
    trees: Trees


def write_scene_pairs(target: Path, *, seed: int, size: int, pairs: Mapping[str, int], unchanged: float) -> None:
    """Writes pairs and labels as `target/{split}/{A,B,label}/{split}_{i}.png`, with i from 1, the names of LEVIR-CD.

    `size` is the side of a picture in pixels, `pairs` the number of pairs per split, `unchanged` the share of pairs in
    each split whose label is empty. A and B have mode RGB; labels have mode L and values 0 and 255. The bytes of a file
    depend only on `seed`, `size`, `unchanged`, the name and number of pairs of the split, and `i`.
    """
    for split, count in pairs.items():
        without_change = _pairs_without_change(seed, split, count, unchanged)
        for kind in KINDS:
            (target / split / kind).mkdir(parents=True, exist_ok=True)
        for index in track(range(1, count + 1), f"render {split}"):
            pictures = scene_pair(size, _generator(seed, split, index), changed=index not in without_change)
            for kind, picture in zip(KINDS, pictures, strict=True):
                Image.fromarray(picture).save(target / split / kind / f"{split}_{index}.png")


def scene_pair(size: int, rng: np.random.Generator, changed: bool) -> tuple[ndarray, ndarray, ndarray]:
    """Renders a scene at two dates: A and B, uint8 [size, size, 3], and the label, uint8 [size, size] of 0 and 255.

    The label marks the footprints of the buildings that exist at only one date, in the frame of A. The size of
    buildings in pixels grows more slowly than that of the picture, so a larger picture shows more buildings.
    """
    scene = _scene(size, rng, changed)
    while changed and not _label(scene).any():  # in a very small scene there may be no space for a building
        scene = _scene(size, rng, changed)
    first = _date(rng, shift=np.zeros(2))
    second = _date(rng, shift=rng.uniform(-0.9, 0.9, 2))
    pictures = [_photograph(_view(scene, date, when, rng), date, rng) for when, date in enumerate((first, second))]
    return pictures[0], pictures[1], _label(scene)


def _generator(seed: int, split: str, index: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([seed, zlib.crc32(split.encode()), index]))


def _pairs_without_change(seed: int, split: str, count: int, share: float) -> set[int]:
    wanted = round(share * count)
    if share > 0 and count >= 4:
        wanted = max(1, wanted)
    chosen = _generator(seed, split, SPLIT_STREAM).choice(count, size=wanted, replace=False)
    return set((chosen + 1).tolist())


# ---- scene


def _scene(size: int, rng: np.random.Generator, changed: bool) -> Scene:
    terrain = _terrain(size + 2 * MARGIN, rng)
    taken = terrain.road > 0
    buildings = _buildings(size, terrain, taken, rng, changed)
    patches = _building_sites(buildings, rng) + _patches(size, terrain, taken, rng)
    return Scene(terrain, buildings, patches, _trees(terrain, rng))


def _terrain(side: int, rng: np.random.Generator) -> Terrain:
    angle = rng.uniform(0, np.pi)
    along = np.array([np.cos(angle), np.sin(angle)])
    y, x = np.mgrid[:side, :side] - side / 2
    u = x * along[0] + y * along[1]
    v = y * along[0] - x * along[1]
    edges = _cuts(side, rng)
    strip = np.digitize(v, edges)
    parcel_edges = _cuts(3 * side, rng)
    parcel = np.digitize(u + rng.uniform(-side / 2, side / 2, len(edges) + 1)[strip], parcel_edges)
    field = strip * (len(parcel_edges) + 1) + parcel
    fields = (len(edges) + 1) * (len(parcel_edges) + 1)
    return Terrain(
        side=side,
        along=along,
        field=field,
        kind=rng.choice([GRASS, CROP, SOIL], size=fields, p=[0.5, 0.35, 0.15]),
        tone=rng.normal(1.0, 0.08, (fields, 1)) * rng.normal(1.0, 0.03, (fields, 3)),
        rows=np.sin(u * (2 * np.pi / rng.uniform(2.5, 4.5))),
        texture=_texture(side, rng),
        road=_roads(u, v, edges, rng),
    )


def _cuts(reach: float, rng: np.random.Generator) -> ndarray:
    """Draws the positions of parcel borders from about -reach to reach."""
    return rng.uniform(-20, 0) - reach + np.cumsum(rng.uniform(20, 52, int(reach / 18)))


def _roads(u: ndarray, v: ndarray, edges: ndarray, rng: np.random.Generator) -> ndarray:
    """Returns the share of each pixel covered by roads, which lie along parcel borders and occasionally across them."""
    lines = [v - edge for edge in edges if abs(edge) < v.max() and rng.random() < 0.35]
    lines += [u - rng.uniform(u.min(), u.max()) for _ in range(rng.binomial(len(edges), 0.12))]
    cover = np.zeros_like(u)
    for distance in lines:
        np.maximum(cover, np.clip(rng.uniform(1.4, 2.6) + 0.5 - abs(distance), 0, 1), out=cover)
    return cover


def _texture(side: int, rng: np.random.Generator) -> ndarray:
    octaves = ((32, 0.6), (16, 0.5), (8, 0.45), (4, 0.4), (2, 0.35), (1, 0.3))
    return sum(weight * _smooth_noise(side, cell, rng) for cell, weight in octaves)


def _smooth_noise(side: int, cell: int, rng: np.random.Generator) -> ndarray:
    knots = side // cell + 2
    noise = Image.fromarray(rng.standard_normal((knots, knots), dtype=np.float32))
    return np.asarray(noise.resize((knots * cell, knots * cell), Image.Resampling.BICUBIC))[:side, :side]


def _buildings(size: int, terrain: Terrain, taken: ndarray, rng: np.random.Generator, changed: bool) -> list[Building]:
    changing_share = rng.uniform(*BUILT_SHARE_CHANGED)
    built_share = changing_share + rng.uniform(*BUILT_SHARE_STANDING)
    growth = (size / REFERENCE_SIZE) ** 0.25
    footprints = list(_place_footprints(size, terrain, taken, built_share, growth, rng))
    changing = changing_share * size**2 if changed else 0
    buildings = []
    for wings, area in footprints:
        stands = (changing <= 0, True)
        if not stands[0] and buildings and rng.random() < DISAPPEARANCES:
            stands = (True, False)
        changing -= area
        buildings.append(_building(wings, growth, stands, rng))
    return buildings


def _place_footprints(
    size: int, terrain: Terrain, taken: ndarray, share: float, growth: float, rng: np.random.Generator
) -> Iterator[tuple[tuple[Rectangle, ...], int]]:
    """Yields footprints on free ground, each with its area in pixels, until they cover `share` of the scene.

    The ground of each footprint is marked in `taken`.
    """
    wanted = share * size**2
    for centre in rng.uniform(0, terrain.side, (int(wanted / 6), 2)):
        if wanted <= 0:
            return
        if _is_centre_taken(centre, taken):
            continue
        wings = _footprint(centre, terrain, growth, rng)
        ground = np.concatenate([wing.grown(CLEARANCE).pixels() for wing in wings]).clip(0, terrain.side - 1)
        x, y = ground.T
        if not taken[y, x].any():
            taken[y, x] = True
            area = _area_in_scene(wings, size)
            wanted -= area
            yield wings, area


def _is_centre_taken(centre: ndarray, taken: ndarray) -> bool:
    """Returns whether a square inside every possible footprint has a taken pixel: a fast check before the exact one."""
    x, y = centre.astype(int).tolist()
    return bool(taken[max(0, y - 3) : y + 4, max(0, x - 3) : x + 4].any())


def _area_in_scene(wings: tuple[Rectangle, ...], size: int) -> int:
    x, y = np.concatenate([wing.pixels() for wing in wings]).T - MARGIN
    inside = (x >= 0) & (x < size) & (y >= 0) & (y < size)
    return len(np.unique(y[inside] * size + x[inside]))


def _footprint(centre: ndarray, terrain: Terrain, growth: float, rng: np.random.Generator) -> tuple[Rectangle, ...]:
    large = rng.random() < LARGE_BUILDINGS
    width = growth * (rng.uniform(11, 16) if large else rng.uniform(6.5, 10))
    length = width * rng.uniform(1.1, 1.8)
    main = Rectangle(centre, _street_direction(terrain, rng), length, width)
    if rng.random() >= L_SHAPES:
        return (main,)
    wing_width = width * rng.uniform(0.6, 0.9)
    wing_length = width / 2 + width * rng.uniform(0.5, 0.9)
    corner = centre + main.along * (rng.choice([-0.5, 0.5]) * (length - wing_width))
    outward = main.across * rng.choice([-1, 1])
    return main, Rectangle(corner + outward * wing_length / 2, outward, wing_length, wing_width)


def _street_direction(terrain: Terrain, rng: np.random.Generator) -> ndarray:
    along = terrain.along if rng.random() < 0.5 else _quarter_turn(terrain.along)
    turn = rng.uniform(-np.pi, np.pi) if rng.random() < 0.15 else rng.normal(0, 0.05)
    return along * np.cos(turn) + _quarter_turn(along) * np.sin(turn)


def _building(
    wings: tuple[Rectangle, ...], growth: float, stands: tuple[bool, bool], rng: np.random.Generator
) -> Building:
    large = wings[0].width > 11 * growth
    return Building(
        wings=wings,
        colour=rng.choice(ROOFS) * rng.normal(1.0, 0.08) * rng.normal(1.0, 0.03, 3),
        height=growth * (rng.uniform(3.5, 7.0) if large else rng.uniform(2.5, 4.5)),
        gabled=bool(rng.random() < (0.4 if large else 0.85)),
        stands=stands,
    )


def _building_sites(buildings: list[Building], rng: np.random.Generator) -> list[Patch]:
    """Returns bare ground around some of the new buildings; some of it exists already at the first date."""
    new = [building for building in buildings if building.stands == (False, True)]
    return [
        Patch(building.wings[0].grown(rng.uniform(1, 5)), _lot_colour(rng), (bool(rng.random() < 0.5), True))
        for building in new
        if rng.random() < 0.5
    ]


def _patches(size: int, terrain: Terrain, taken: ndarray, rng: np.random.Generator) -> list[Patch]:
    """Returns lots with the shape of footprints, which may appear or disappear, but are not buildings."""
    growth = (size / REFERENCE_SIZE) ** 0.25
    presences = [(False, True), (True, False), (True, True)]
    return [
        Patch(wings[0], _lot_colour(rng), presences[rng.choice(3, p=[0.45, 0.35, 0.2])])
        for wings, _ in _place_footprints(size, terrain, taken, rng.uniform(*PATCH_SHARE), growth, rng)
    ]


def _lot_colour(rng: np.random.Generator) -> ndarray:
    return rng.choice(LOTS) * rng.normal(1.0, 0.06)


def _trees(terrain: Terrain, rng: np.random.Generator) -> Trees:
    """Draws groves of one or more trees; trees on roads are removed."""
    groves = rng.poisson((terrain.side / 28) ** 2)
    members = rng.geometric(0.35, groves)
    spread = rng.normal(0, 4.5, (members.sum(), 2))
    centre = np.repeat(rng.uniform(0, terrain.side, (groves, 2)), members, axis=0) + spread
    radius = rng.uniform(1.3, LARGEST_CROWN, len(centre))
    x, y = np.floor(centre).astype(int).clip(0, terrain.side - 1).T
    off_road = terrain.road[y, x] == 0
    count = int(off_road.sum())
    return Trees(centre[off_road], radius[off_road], rng.random(count) < 0.3, rng.normal(1.0, 0.1, (count, 1)))


# ---- rendering of one date


def _date(rng: np.random.Generator, shift: ndarray) -> Date:
    azimuth = rng.uniform(-1.2, 1.2)
    length = rng.uniform(0.5, 1.5)
    return Date(
        shadow=length * np.array([np.sin(azimuth), -np.cos(azimuth)]),
        vigour=rng.uniform(0.15, 1.0),
        gain=rng.uniform(0.8, 1.2),
        gamma=rng.uniform(0.85, 1.2),
        tint=rng.normal(1.0, 0.03, 3),
        blur=rng.uniform(0.4, 0.65),
        noise=rng.uniform(2.0, 5.0),
        shift=shift,
    )


def _view(scene: Scene, date: Date, when: int, rng: np.random.Generator) -> ndarray:
    """Returns float [side, side, 3]: the scene with the shadows of the date in colours from 0 to 255."""
    terrain = scene.terrain
    buildings = [building for building in scene.buildings if building.stands[when]]
    trees = _standing_trees(scene.trees, buildings, terrain.side, rng)
    view = _ground(terrain, date, rng)
    view = _over(view, _lots([patch for patch in scene.patches if patch.lies[when]], terrain.side))
    view += 4.0 * terrain.texture[..., None]
    view += terrain.road[..., None] * (ASPHALT - view)
    view *= 1 - _shadows(buildings, trees, date, terrain.side)[..., None] * (1 - SHADE)
    canvas, draw = _canvas("RGBX", terrain.side)
    _draw_cars(draw, terrain, rng)
    _draw_crowns(draw, trees, date)
    _draw_roofs(draw, buildings, date)
    return _over(view, canvas)


def _ground(terrain: Terrain, date: Date, rng: np.random.Generator) -> ndarray:
    kinds = terrain.kind
    fields = len(kinds)
    crop = rng.uniform(0, 1, fields)
    grass = (date.vigour + rng.normal(0, 0.12, fields)).clip(0, 1)
    vigour = np.choose(kinds, [grass, crop, 0.1 * grass])[:, None]
    colour = (EARTH + vigour * (VEGETATION - EARTH)) * terrain.tone * rng.normal(1.0, 0.04, (fields, 1))
    furrows = 5.0 * terrain.rows * (kinds == CROP)[terrain.field]
    return colour[terrain.field] + (furrows + 6.0 * terrain.texture)[..., None]


def _standing_trees(trees: Trees, buildings: list[Building], side: int, rng: np.random.Generator) -> Trees:
    """Returns the trees outside buildings, except for a random tenth, which is missing at this date."""
    built = _footprints(buildings, side, grown=LARGEST_CROWN + 1) > 0
    x, y = np.floor(trees.centre).astype(int).clip(0, side - 1).T
    stay = ~built[y, x] & (rng.random(len(trees.radius)) > 0.1)
    return Trees(trees.centre[stay], trees.radius[stay], trees.evergreen[stay], trees.tone[stay])


def _lots(patches: list[Patch], side: int) -> Image.Image:
    canvas, draw = _canvas("RGBX", side)
    for patch in patches:
        _polygon(draw, patch.area.corners(), _opaque(patch.colour))
    return canvas


def _shadows(buildings: list[Building], trees: Trees, date: Date, side: int) -> ndarray:
    """Returns float [side, side]: the share of each pixel that lies in shadow."""
    canvas, draw = _canvas("L", side)
    for building in buildings:
        for wing in building.wings:
            for outline in _swept(wing.corners(), building.height * date.shadow):
                _polygon(draw, outline, COVERED)
    for centre, radius in zip(trees.centre, trees.radius, strict=True):
        for rise in (0.6, 1.3):
            _disc(draw, centre + rise * radius * date.shadow, radius, COVERED)
    return _cover(canvas)


def _swept(corners: ndarray, reach: ndarray) -> list[ndarray]:
    """Returns polygons whose union is the area swept by moving the polygon `corners` along `reach`."""
    following = np.roll(corners, -1, axis=0)
    return [corners + reach, *np.stack([corners, following, following + reach, corners + reach], axis=1)]


def _draw_cars(draw: ImageDraw.ImageDraw, terrain: Terrain, rng: np.random.Generator) -> None:
    y, x = np.nonzero(terrain.road == 1)
    for place in rng.integers(len(x), size=rng.poisson(len(x) / 120)):
        centre = np.array([x[place], y[place]]) + 0.5
        car = Rectangle(centre, terrain.along, rng.uniform(2.2, 3.2), 1.4)
        _polygon(draw, car.corners(), _opaque(rng.choice(CARS)))


def _draw_crowns(draw: ImageDraw.ImageDraw, trees: Trees, date: Date) -> None:
    leaves = np.where(trees.evergreen, 0.9, date.vigour)[:, None]
    colours = (BARE_CROWN + leaves * (CROWN - BARE_CROWN)) * trees.tone
    for centre, radius, colour in zip(trees.centre, trees.radius, colours, strict=True):
        _disc(draw, centre, radius, _opaque(0.85 * colour))
        _disc(draw, centre + 0.3 * radius * date.to_sun, 0.6 * radius, _opaque(1.2 * colour))


def _draw_roofs(draw: ImageDraw.ImageDraw, buildings: list[Building], date: Date) -> None:
    for building in buildings:
        if building.gabled:
            for wing in building.wings:
                _draw_gable(draw, wing, building.colour, date)
        else:
            for rim, brightness in ((0.0, 1.1), (-0.8, 0.96)):
                for wing in building.wings:
                    _polygon(draw, wing.grown(rim).corners(), _opaque(brightness * building.colour))


def _draw_gable(draw: ImageDraw.ImageDraw, wing: Rectangle, colour: ndarray, date: Date) -> None:
    facing = float(wing.across @ date.to_sun)
    for low, high, brightness in ((-1.0, 0.0, 1 - 0.22 * facing), (0.0, 1.0, 1 + 0.22 * facing), (-0.06, 0.06, 1.15)):
        _polygon(draw, wing.corners(low, high), _opaque(brightness * colour))


def _photograph(view: ndarray, date: Date, rng: np.random.Generator) -> ndarray:
    """Returns uint8 [size, size, 3]: the view with the blur, shift, exposure and noise of the date."""
    seen = view
    for axis in (0, 1):
        seen = ndimage.correlate1d(seen, _displaced_blur(date.blur, date.shift[1 - axis]), axis=axis)
    exposed = (seen[MARGIN:-MARGIN, MARGIN:-MARGIN] / 255).clip(0, 1) ** date.gamma * date.gain * date.tint
    return (255 * exposed + rng.normal(0, date.noise, exposed.shape)).clip(0, 255).round().astype(np.uint8)


def _displaced_blur(deviation: float, by: float) -> ndarray:
    """Returns [7]: one axis of a Gaussian point spread function, which also shifts the picture by `by` pixels."""
    weights = np.exp(-((np.arange(-3, 4) + by) ** 2) / (2 * deviation**2))
    return weights / weights.sum()


def _label(scene: Scene) -> ndarray:
    changing = [building for building in scene.buildings if building.stands[0] != building.stands[1]]
    cover = _footprints(changing, scene.terrain.side)
    return np.where(cover[MARGIN:-MARGIN, MARGIN:-MARGIN] >= 0.5, 255, 0).astype(np.uint8)


# ---- oversampled drawing


def _canvas(mode: str, side: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Creates a canvas of zeros. The last band of "RGBX" is the cover, which already weights the reduced colours."""
    canvas = Image.new(mode, (side * OVERSAMPLING, side * OVERSAMPLING))
    return canvas, ImageDraw.Draw(canvas)


def _opaque(colour: ndarray) -> tuple[int, ...]:
    return (*(min(255, int(band)) for band in colour.tolist()), COVERED)


def _polygon(draw: ImageDraw.ImageDraw, points: ndarray, fill: int | tuple[int, ...]) -> None:
    draw.polygon((points * OVERSAMPLING - 0.5).ravel().tolist(), fill=fill)


def _disc(draw: ImageDraw.ImageDraw, centre: ndarray, radius: float, fill: int | tuple[int, ...]) -> None:
    x, y = (centre * OVERSAMPLING - 0.5).tolist()
    reach = radius * OVERSAMPLING
    draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=fill)


def _footprints(buildings: list[Building], side: int, grown: float = 0.0) -> ndarray:
    """Returns float [side, side]: the share of each pixel covered by buildings grown by `grown` pixels on each side."""
    canvas, draw = _canvas("L", side)
    for building in buildings:
        for wing in building.wings:
            _polygon(draw, wing.grown(grown).corners(), COVERED)
    return _cover(canvas)


def _cover(canvas: Image.Image) -> ndarray:
    return np.asarray(canvas.reduce(OVERSAMPLING)) / COVERED


def _over(view: ndarray, canvas: Image.Image) -> ndarray:
    layer = np.asarray(canvas.reduce(OVERSAMPLING), dtype=float)
    return view * (1 - layer[..., 3:] / COVERED) + layer[..., :3]


def _quarter_turn(vector: ndarray) -> ndarray:
    return np.array([-vector[1], vector[0]])
