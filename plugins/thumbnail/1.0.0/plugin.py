"""Scales pictures down with Pillow: upright (by their EXIF orientation), never larger than they were, first frame only."""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from cloche_guest import Job, hookimpl

MAX_PIXELS = 40_000_000  # decoded; two copies of them as RGBA take 320 MB
MAX_CLAIM = 400_000_000  # of a file: a large JPEG is decoded at a fraction of its size
UNBOUNDED = 1 << 20  # a height no picture has
SUFFIX = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}


@hookimpl
def setup() -> None:
    """Load Pillow's codecs before a job is known."""
    Image.init()
    Image.MAX_IMAGE_PIXELS = MAX_CLAIM // 2  # Pillow refuses what claims twice as many


@hookimpl
def run(job: Job) -> dict[str, Any]:
    """Writes ``<stem>-thumb.<ext>`` per picture. Result: ``{"pictures": n, "files": [{"file", "from", "width", "height", …}]}``."""
    files: list[dict[str, Any]] = []
    taken: set[str] = set()
    for number, path in enumerate(job.inputs, start=1):
        files.append(thumbnail(path, job, taken))
        job.progress(number, len(job.inputs), path.name)
    return {"pictures": len(files), "files": files}


def thumbnail(path: Path, job: Job, taken: set[str]) -> dict[str, Any]:
    """Scale one picture.

    Raises:
        ValueError: it is no picture, is damaged, or claims too many pixels.
    """
    width, height = job.payload["width"], job.payload.get("height", UNBOUNDED)
    try:
        with Image.open(path) as picture:
            original = picture.size
            kind = chosen_format(job.payload["format"], picture.format)
            picture.draft(None, twice(original, width, height))
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(
                    f"{path.name} has {original[0]}×{original[1]} pixels; at most {MAX_PIXELS} are decoded"
                )
            upright = ImageOps.exif_transpose(picture)
        small = fitted(upright, kind, width, height)
    except UnidentifiedImageError:
        raise ValueError(f"{path.name} is not a picture that Pillow can read") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from None
    name = free_name(f"{path.stem}-thumb", SUFFIX[kind], taken)
    small.save(job.out / name, kind, optimize=True, quality=85)
    return {
        "file": name,
        "from": path.name,
        "format": kind.lower(),
        "width": small.width,
        "height": small.height,
        "original_width": original[0],
        "original_height": original[1],
    }


def chosen_format(asked: str, own: str | None) -> str:
    if asked != "same":
        return asked.upper()
    return own if own in SUFFIX else "PNG"


def twice(size: tuple[int, int], width: int, height: int) -> tuple[int, int]:
    """Double the size the thumbnail will have, whichever way the picture is turned: JPEG decoders need not do more."""
    factor = max(min(width / size[0], height / size[1]), min(width / size[1], height / size[0]))
    return ceil(2 * factor * size[0]), ceil(2 * factor * size[1])


def fitted(picture: Image.Image, kind: str, width: int, height: int) -> Image.Image:
    """The picture scaled, in a mode its format can hold: JPEG has no transparency, so that lies on white.

    Of its metadata only a colour profile is kept, where it still describes the pixels: no place, camera or preview gets out.
    """
    profile = picture.info.get("icc_profile") if picture.mode in ("RGB", "RGBA") else None
    if picture.mode.startswith("I;16"):
        picture = picture.convert("I").point(lambda value: value * (1 / 256))
    clear = picture.has_transparency_data
    small = picture.convert("RGBA" if clear else ("L" if picture.mode in ("1", "L", "I", "F") else "RGB"))
    small.thumbnail((width, height), Image.Resampling.LANCZOS)
    if kind == "JPEG" and clear:
        paper = Image.new("RGB", small.size, "white")
        paper.paste(small, mask=small.getchannel("A"))
        small = paper
    small.info = {"icc_profile": profile} if profile else {}
    return small


def free_name(stem: str, suffix: str, taken: set[str]) -> str:
    """``stem`` + ``suffix``, numbered when an earlier picture of this job has that name."""
    name, number = stem + suffix, 2
    while name in taken:
        name, number = f"{stem}-{number}{suffix}", number + 1
    taken.add(name)
    return name
