"""Scales pictures down with Pillow: upright (by their EXIF orientation), never larger than they were, first frame only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cloche_guest import Job, hookimpl
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 80_000_000  # a picture that claims more is refused before it is decoded; 80 MP take 320 MB as RGBA
SUFFIX = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}


@hookimpl
def setup() -> None:
    """Load Pillow's codecs before a job is known."""
    Image.init()
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS


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
    width = job.payload["width"]
    height = job.payload.get("height", 1 << 20)
    try:
        with Image.open(path) as picture:
            original = picture.size
            if original[0] * original[1] > MAX_PIXELS:
                raise ValueError(
                    f"{path.name} claims {original[0]}×{original[1]} pixels; at most {MAX_PIXELS} are decoded"
                )
            kind = chosen_format(job.payload["format"], picture.format)
            # A JPEG can be decoded at a fraction of its size; a square, since it may yet be turned.
            picture.draft(None, (2 * max(width, 1), 2 * max(width, min(height, original[1]))))
            upright = ImageOps.exif_transpose(picture)
            upright.thumbnail((width, height), Image.Resampling.LANCZOS)
            small = fitted(upright, kind)
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


def fitted(picture: Image.Image, kind: str) -> Image.Image:
    """The picture in a mode its format can hold: JPEG has no transparency, so that lies on white; metadata stays behind."""
    clear = picture.has_transparency_data
    small = picture.convert("RGBA" if clear else ("L" if picture.mode in ("1", "L", "I", "I;16", "F") else "RGB"))
    if kind == "JPEG" and clear:
        paper = Image.new("RGB", small.size, "white")
        paper.paste(small, mask=small.getchannel("A"))
        return paper
    small.info.clear()
    return small


def free_name(stem: str, suffix: str, taken: set[str]) -> str:
    """``stem`` + ``suffix``, numbered when an earlier picture of this job has that name."""
    name, number = stem + suffix, 2
    while name in taken:
        name, number = f"{stem}-{number}{suffix}", number + 1
    taken.add(name)
    return name
