"""Feature maps as images, and their change over epochs as an animation."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bbnet.data.store import whole_file

GAP = 1  # pixels between maps
SMALLEST_MAP = 64  # pixels, to which small maps are enlarged by a whole number


def tiles(maps: np.ndarray, low: float, high: float) -> np.ndarray:
    """Returns maps [channels, height, width] beside each other as grey pixels, uint8 [height, width].

    `low` is black and `high` white; maps below 64 pixels are enlarged by a whole number.
    """
    channels, height, width = maps.shape
    factor = max(1, SMALLEST_MAP // max(height, width))
    scaled = np.clip((maps.astype(float) - low) / (high - low), 0, 1) if high > low else np.zeros(maps.shape)
    pixels = np.nan_to_num(scaled * 255).round().astype(np.uint8).repeat(factor, 1).repeat(factor, 2)
    columns = math.ceil(math.sqrt(channels))
    rows = math.ceil(channels / columns)
    tall, wide = height * factor + GAP, width * factor + GAP
    canvas = np.full((rows * tall - GAP, columns * wide - GAP), 128, dtype=np.uint8)
    for channel in range(channels):
        row, column = divmod(channel, columns)
        canvas[row * tall : row * tall + tall - GAP, column * wide : column * wide + wide - GAP] = pixels[channel]
    return canvas


def save_image(path: str | Path, pixels: np.ndarray) -> None:
    """Writes grey pixels, uint8 [height, width], as PNG; raises ImportError without Pillow."""
    image = _pillow().fromarray(pixels)
    with whole_file(Path(path)) as partial:
        image.save(partial, format="PNG")


def animate(path: str | Path, frames: Sequence[np.ndarray], fps: float = 5) -> None:
    """Writes maps [channels, height, width], one for each frame, as `.gif` (by Pillow) or `.mp4` (by imageio-ffmpeg).

    All frames have the same scale of grey, from the smallest to the largest value of all of them.

    Raises:
        ValueError: if there are no frames, frames differ in shape, or the suffix is another one.
        ImportError: without the package that is needed.
    """
    path = Path(path)
    if path.suffix not in (".gif", ".mp4"):
        raise ValueError(f"{path.name}: an animation is a .gif or an .mp4 file")
    if not frames:
        raise ValueError(f"{path.name}: there are no frames to show")
    for number, each in enumerate(frames):
        if each.shape != frames[0].shape:
            raise ValueError(
                f"{path.name}: frame {number} has maps of shape {list(each.shape)}, the first {list(frames[0].shape)}"
            )
    finite = [each[np.isfinite(each)].astype(float) for each in frames]
    known = [each for each in finite if each.size]
    low, high = (min(map(np.min, known)), max(map(np.max, known))) if known else (0.0, 0.0)
    pixels = [tiles(each, float(low), float(high)) for each in frames]
    if path.suffix == ".gif":
        first, *others = [_pillow().fromarray(each) for each in pixels]
        options = {"save_all": True, "append_images": others, "duration": round(1000 / fps), "loop": 0}
        with whole_file(path) as partial:
            first.save(partial, format="GIF", **options)
    else:
        _write_mp4(path, pixels, fps)


def _write_mp4(path: Path, pixels: Sequence[np.ndarray], fps: float) -> None:
    try:
        import imageio_ffmpeg
    except ImportError:
        raise ImportError(f"{path.name} needs imageio-ffmpeg: install it, or write a .gif") from None
    height, width = (side + side % 2 for side in pixels[0].shape)  # H.264 needs even sides
    with whole_file(path) as partial:
        writer = imageio_ffmpeg.write_frames(
            str(partial), (width, height), pix_fmt_in="gray", fps=fps, macro_block_size=2, ffmpeg_log_level="error"
        )
        writer.send(None)
        for each in pixels:
            padded = np.full((height, width), 128, dtype=np.uint8)
            padded[: each.shape[0], : each.shape[1]] = each
            writer.send(padded.tobytes())
        writer.close()


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise ImportError("images need Pillow: install it, or use the maps of the probe as arrays") from None
    return Image
