"""Reading of pictures: the same pixels on the host, where a model is trained, and beside `label.py` on a device.

Pillow and numpy are all it needs. Python 3.8 or later.

A picture becomes 8-bit RGB by these rules. It is turned as its EXIF orientation says. Of an animation the first frame
counts. Transparent areas show `BACKGROUND`. Pictures of more than 8 bits a channel, or of floats, are scaled by the
limits that were measured over the training images, or stated (`data.range`); without them they are not read. A JPEG
without its end marker is read where all of its pixels are there.
"""

from __future__ import annotations

import io
import stat
from pathlib import Path
from typing import Any, BinaryIO, Dict, Optional, Sequence, Tuple, Union

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

Limits = Tuple[float, float]
Source = Union[str, Path, BinaryIO]
Size = Union[int, Sequence[int]]  # the side of a square, or height and width, in pixels

BACKGROUND = (128, 128, 128)  # black and white icons both stand out against a mid gray
SPECIAL = "is a FIFO, a socket or a device, not a file"
# other formats of Pillow start programs (EPS), are no pictures, or have more than 8 bits in ways of their own
FORMATS = frozenset({"AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP"})
BILINEAR = getattr(Image, "Resampling", Image).BILINEAR  # Pillow before 9.1 has no Resampling
MAX_OUTSIDE = 0.9  # largest share of a picture's pixels outside the limits
MIN_LEVELS = 64  # Pillow reads 8 of 16 bits of color: fewest levels that the limits may leave of them
MIN_IS_WHITE, PHOTOMETRIC = 0, 262  # TIFF: the least value is white; Pillow inverts 8-bit pictures alone
ORIENTATION = 0x0112
# EXIF orientation -> transposition as in ImageOps.exif_transpose, which also rewrites the EXIF data and may fail at it
TURNS: Dict[Any, int] = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
END_MARKER = b"\xff\xd9"
# bits that stand in for missing ones: an all-zero filler may decode to the same gray as an early end marker does
FILLERS = (b"\x55\xaa" * 2048, b"\xfe\x7f" * 2048)

# cameras and editors write long descriptions; Pillow's limit for one is 1 MiB, and refuses the picture with it
PngImagePlugin.MAX_TEXT_CHUNK = 16 * 2**20


class UnreadableError(Exception):
    """A picture that cannot be read; the message is one line and names no file."""


class NeedsLimitsError(Exception):
    """A picture of more than 8 bits, and the limits to scale it by are not known."""


def is_special(path: Union[str, Path]) -> bool:
    """Whether a path is, or links to, a FIFO, a socket or a device: opening it may wait for ever."""
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def open_picture(source: Source) -> Image.Image:
    """Open a picture by path or from a stream; its pixels are not decoded yet.

    Raises:
        OSError: the file is missing, is a FIFO, a socket or a device, or is in no format of `FORMATS`.
    """
    if isinstance(source, (str, Path)) and is_special(source):
        raise OSError(SPECIAL)
    image = Image.open(source)
    # Pillow maps a file that it knows by name into memory, and versions of it then shear turned TIFFs
    image.filename = ""
    if image.format not in FORMATS:
        image.close()
        raise OSError(f"{image.format} is not a format that is read")
    return image


def reason(error: Exception) -> str:
    """Why a picture cannot be read, in one line: on broken bytes Pillow raises OSError, SyntaxError and many more."""
    if isinstance(error, (UnreadableError, NeedsLimitsError)):
        return str(error)
    if isinstance(error, UnidentifiedImageError):  # its text names an object in memory
        return "is not a picture in a format that is read"
    text = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0]
    return str(text) if isinstance(error, OSError) and text else f"{type(error).__name__}: {text}"


def read(source: Source, *, store_px: Size, input_px: Size, fit: str, limits: Optional[Limits]) -> np.ndarray:
    """A picture as a model saw it in training: uint8 [input_px, input_px, 3], or [H, W, 3] of that size, RGB.

    Raises:
        UnreadableError: it cannot be read, for any reason; the message is one line.
    """
    try:
        with open_picture(source) as image:
            return fit_square(to_rgb(image, limits), store_px, input_px=input_px, fit=fit)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise errors of many types on broken bytes
        raise UnreadableError(reason(error)) from None


def fit_square(rgb: Image.Image, store_px: Size, input_px: Size, fit: str) -> np.ndarray:
    """An RGB picture at the model's input size: uint8 [input_px, input_px, 3], or [H, W, 3] of that size.

    It is resized twice, first to the size at which training pictures were stored and then to the model's: one resize
    would give slightly other pixels than those the model was trained on.
    """
    stored = square(rgb, store_px, fit)
    size = width_height(input_px)
    resized = stored if stored.size == size else stored.resize(size, BILINEAR)
    return np.asarray(resized, dtype=np.uint8)


def square(rgb: Image.Image, px: Size, fit: str) -> Image.Image:
    """A square of `px` pixels, or a picture of that height and width.

    "crop" cuts out the center in that ratio, "squash" keeps the whole picture and drops its own.
    """
    size = width_height(px)
    return ImageOps.fit(rgb, size, method=BILINEAR) if fit == "crop" else rgb.resize(size, BILINEAR)


def width_height(size: Size) -> Tuple[int, int]:
    """A size in Pillow's order."""
    return (size, size) if isinstance(size, int) else (int(size[1]), int(size[0]))


def to_rgb(image: Image.Image, limits: Optional[Limits]) -> Image.Image:
    """An upright, opaque picture of 8-bit RGB, by the rules above.

    Args:
        image: an opened picture, or one made in memory.
        limits: the values that become black and white in pictures of more than 8 bits; None where they are not known.

    Raises:
        NeedsLimitsError: the picture has more than 8 bits and `limits` is None.
        UnreadableError: its values or its colors cannot be converted.
        Exception: whatever Pillow raises on broken bytes.
    """
    has_deep_color = _has_deep_color(image)  # Pillow drops the lower 8 bits when it loads the pixels
    loaded = _loaded(image)
    inverted = _is_inverted(loaded)
    if has_deep_color or _is_deep_gray(loaded.mode):
        if limits is None:
            raise NeedsLimitsError("has more than 8 bits, and the values that become black and white are not known")
        scaled = _scaled_color(loaded, limits) if has_deep_color else _scaled_gray(loaded, limits, inverted)
    else:
        scaled = loaded
    return _opaque(scaled.transpose(turn) if (turn := _turn(loaded)) is not None else scaled)


def deep_values(image: Image.Image) -> Optional[np.ndarray]:
    """All values of a picture of more than 8 bits, in any order, float32 or float64 [M]; None for other pictures.

    Of 16-bit color Pillow keeps the upper 8 bits; they count 257 times, so that 255 becomes 65,535.

    Raises:
        UnreadableError: a value is not finite.
        Exception: whatever Pillow raises on broken bytes.
    """
    has_deep_color = _has_deep_color(image)
    if not has_deep_color and not _is_deep_gray(image.mode):
        return None
    loaded = _loaded(image)
    if has_deep_color:
        return np.asarray(loaded.convert("RGB"), dtype=np.float32).ravel() * 257
    return _gray_values(loaded).ravel()


def _is_deep_gray(mode: str) -> bool:
    return mode in ("I", "F") or mode.startswith("I;16")


def _has_deep_color(image: Image.Image) -> bool:
    """Whether the file holds 16 bits for each color of a pixel, of which Pillow reads the upper 8."""
    tiles = getattr(image, "tile", None) or []
    return any(_is_deep_tile(tile[0], tile[3]) for tile in tiles[:1])


def _is_deep_tile(codec: str, arguments: Any) -> bool:
    """As Pillow names the parts of a file: the decoder, and its arguments, of which the raw mode is the first."""
    raw = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    if codec.startswith("ppm"):
        return bool(raw == "RGB" and arguments[1] > 255)  # the file's largest value
    # BGR;16 is 16 bits for the three colors together
    return isinstance(raw, str) and ";16" in raw and not raw.startswith(("I", "BGR"))


def _loaded(image: Image.Image) -> Image.Image:
    """The picture with its pixels decoded; a JPEG without its end marker is decoded with one."""
    try:
        image.load()
        return image
    except OSError:
        if image.format not in ("JPEG", "MPO"):
            raise
        completed = _completed(image)
        if completed is None:
            raise
        return completed


def _completed(image: Image.Image) -> Optional[Image.Image]:
    """A JPEG decoded with an end marker appended; None if pixels are missing.

    libjpeg fills in missing pixels without an error. Bits between the data and the marker tell: where no pixel is
    missing they change nothing, else they are decoded as the missing ones.
    """
    stream = getattr(image, "fp", None)
    if stream is None:
        return None
    stream.seek(0)
    content = stream.read()
    if content.endswith(b"\xff"):  # the first half of the marker
        content = content[:-1]
    completed = Image.open(io.BytesIO(content + END_MARKER))
    completed.load()
    pixels = np.asarray(completed)
    for filler in FILLERS:
        filled = Image.open(io.BytesIO(content + filler + END_MARKER))
        if not np.array_equal(np.asarray(filled), pixels):
            return None
    return completed


def _is_inverted(image: Image.Image) -> bool:
    tags = getattr(image, "tag_v2", None)
    return tags is not None and tags.get(PHOTOMETRIC) == MIN_IS_WHITE


def _gray_values(image: Image.Image) -> np.ndarray:
    # 32-bit integers are no float32 values
    values_HW = np.asarray(image).astype(np.float64 if image.mode == "I" else np.float32)
    if not np.isfinite(values_HW).all():
        raise UnreadableError("holds values that are not finite")
    return values_HW


def _scaled_gray(image: Image.Image, limits: Limits, inverted: bool) -> Image.Image:
    """8-bit gray, with alpha where one value stands for transparent."""
    low, high = limits
    values_HW = _gray_values(image)
    _refuse_outside(values_HW, limits)
    gray_HW = (np.clip((values_HW - low) * (255.0 / (high - low)), 0.0, 255.0) + 0.5).astype(np.uint8)
    gray = Image.fromarray(255 - gray_HW if inverted else gray_HW)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray.putalpha(Image.fromarray(np.where(values_HW == transparent, 0, 255).astype(np.uint8)))
    return gray


def _scaled_color(image: Image.Image, limits: Limits) -> Image.Image:
    """8-bit RGB, with alpha where the picture has it; `limits` are those of 16-bit values."""
    low, high = limits
    if (high - low) / 257 < MIN_LEVELS:
        raise UnreadableError(
            f"has 16-bit color, of which Pillow reads the upper 8 bits: between {low:g} and {high:g} they hold fewer "
            f"than {MIN_LEVELS} levels; convert it to 8 bits"
        )
    color = image.convert("RGBA") if _has_alpha(image) else image.convert("RGB")
    bands = color.split()
    _refuse_outside(np.asarray(image.convert("RGB"), dtype=np.float32) * 257, limits)
    table = [int(min(max((level * 257 - low) * (255.0 / (high - low)), 0.0), 255.0) + 0.5) for level in range(256)]
    return Image.merge(color.mode, [band.point(table) for band in bands[:3]] + list(bands[3:]))


def _refuse_outside(values: np.ndarray, limits: Limits) -> None:
    low, high = limits
    share = float(((values < low) | (values > high)).mean())
    if share > MAX_OUTSIDE:
        raise UnreadableError(
            f"{share:.0%} of its values are outside {low:g} to {high:g}, which become black and white; it holds "
            f"{float(values.min()):g} to {float(values.max()):g}"
        )


def _turn(image: Image.Image) -> Any:
    """The transposition that puts the picture upright, a constant of Pillow; EXIF data that cannot be read say none."""
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # broken EXIF data raise errors of many types, and the pixels are good
        return None
    return TURNS.get(orientation)


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info


def _opaque(image: Image.Image) -> Image.Image:
    """The picture in RGB, its transparent areas laid over BACKGROUND."""
    if not _has_alpha(image):
        return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it
    straight = image.convert("LA") if image.mode == "La" else image  # Pillow converts premultiplied gray to LA alone
    rgba = straight.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (*BACKGROUND, 255)), rgba).convert("RGB")
