"""Reading image files of every kind as 8-bit RGB, and saying what was odd about them."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import DataError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Recognised file names, in any case: torchvision's list."""

MAX_PIXELS = 100_000_000  # larger images are refused: a small file can claim any size; Pillow refuses later
_ORIENTATION = 0x0112  # EXIF tag
_NOT_TURNED = (
    "with an EXIF orientation: data sets are taken as stored, as the reference does; single pictures that a "
    "loaded or served model is given are turned upright"
)
_DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")


class UnreadableImageError(DataError):
    """The bytes are no image, or a damaged one."""


def read_image(data: bytes, *, turn_upright: bool = False) -> tuple[Image.Image, str | None]:
    """Decode one image.

    Args:
        data: content of the file.
        turn_upright: follow the EXIF orientation that cameras write; data sets are read as they are stored,
            as the reference reads them.

    Returns:
        The image in mode RGB, and what was odd about it: 16 bits a channel (scaled to 8), several frames (the
        first is taken), CMYK, transparency (dropped), turned by its EXIF data, very small. ``None`` if
        nothing was.

    Raises:
        UnreadableImageError: truncated, damaged, no image, or too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged EXIF blocks and the like are no reason to talk
            image = Image.open(io.BytesIO(data))
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableImageError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS}")
            oddity = _oddity(image, turn_upright)
            image.load()
            return _to_rgb(upright(image) if turn_upright else image), oddity
    except UnreadableImageError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever damaged bytes lead them to
        raise UnreadableImageError(_reason(error)) from None


def upright(image: Image.Image) -> Image.Image:
    """The image turned and mirrored as its EXIF orientation says."""
    return ImageOps.exif_transpose(image) if _orientation(image) > 1 else image


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF blocks raise whatever they meet, and are no reason to refuse a picture
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _oddity(image: Image.Image, turn_upright: bool) -> str | None:
    found: list[str] = []
    if getattr(image, "n_frames", 1) > 1:
        found.append("animated: the first frame is taken")
    if image.mode in _DEEP_MODES:
        found.append("more than 8 bits a channel: scaled to 8")
    elif (image.mode in ("CMYK", "LAB", "YCbCr") and image.format != "JPEG") or image.mode == "CMYK":
        found.append(f"{image.mode} colours: converted")
    elif image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        found.append("transparent: transparency is dropped")
    if _orientation(image) > 1:
        found.append("turned upright by its EXIF orientation" if turn_upright else _NOT_TURNED)
    if min(image.size) < 8:
        found.append("a side of less than 8 pixels: enlarged")
    return "; ".join(found) or None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode not in _DEEP_MODES:
        return image.convert("RGB")
    # Pillow's own conversion cuts 16-bit values off at 255, which leaves a white picture.
    values = np.asarray(image)
    low, factor = 0.0, 1.0
    if image.mode == "F":
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        factor = 255.0 / ((high - low) or 1.0)
    elif values.max(initial=0.0) > 255 or image.mode != "I":
        factor = 1.0 / 257.0
    out = np.empty(values.shape, dtype=np.uint8)
    for row, line in enumerate(values):  # row by row: in doubles the whole would take eight times its memory
        out[row] = np.nan_to_num((line.astype(np.float64) - low) * factor).round().clip(0, 255)
    return Image.fromarray(out).convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no image that can be read"
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:120]
