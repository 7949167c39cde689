"""One answer for each kind of picture: in the image store, in `check`, in shards, in `predict` and in label.py."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, TiffImagePlugin, features

from edgedistill.agent import label, pictures
from edgedistill.agent.pictures import BACKGROUND, Limits
from edgedistill.data import images, shards
from edgedistill.data.images import View
from edgedistill.data.limits import Decoder
from edgedistill.data.listing import SUFFIXES, Files
from tests.helpers import tars

PX = 8
RAMP = np.arange(PX * PX, dtype=np.uint8).reshape(PX, PX) * 4  # 0 to 252
DEEP = RAMP.astype(np.uint16) * 16  # 12 of 16 bits, 0 to 4,032
DEEP_LIMITS = (0.0, 4080.0)  # 16 values a level: DEEP is RAMP
TALL = np.arange(24, dtype=np.uint8).reshape(6, 4) * 10  # not square: a memory map would shear it when it is turned
FULL_LIMITS = (0.0, 65535.0)
COLOR = np.stack([RAMP, RAMP[::-1], RAMP.T], axis=-1)
HALF = np.zeros((PX, PX), dtype=np.uint8)
HALF[:, PX // 2 :] = 255  # the right half is opaque
OVER_BACKGROUND = np.where(HALF[..., None] == 255, COLOR, np.uint8(BACKGROUND[0]))


def gray(levels_HW: np.ndarray) -> np.ndarray:
    return np.repeat(levels_HW[..., None], 3, axis=2).astype(np.uint8)


def saved(image: Image.Image, format_name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png16(color_type: int, values: np.ndarray, *chunks: bytes) -> bytes:
    """A PNG of 16 bits a channel; Pillow writes gray ones alone."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, color_type, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def rgba(alpha_HW: np.ndarray = HALF) -> Image.Image:
    return Image.fromarray(np.dstack([COLOR, alpha_HW]))


def palette(transparency: bytes | int | None) -> bytes:
    indexed = Image.fromarray((np.arange(PX * PX) % 4).astype(np.uint8).reshape(PX, PX), mode="L").convert("P")
    indexed.putpalette([0, 0, 0, 10, 20, 30, 40, 50, 60, 255, 255, 255])
    return saved(indexed, "PNG", **({} if transparency is None else {"transparency": transparency}))


def palette_colors(transparent: tuple[int, ...]) -> np.ndarray:
    colors = np.array([(0, 0, 0), (10, 20, 30), (40, 50, 60), (255, 255, 255)], dtype=np.uint8)
    for index in transparent:
        colors[index] = BACKGROUND
    return colors[(np.arange(PX * PX) % 4).reshape(PX, PX)]


def white_is_zero(levels_HW: np.ndarray) -> bytes:
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    directory[262] = 0
    content = saved(Image.fromarray(levels_HW), "TIFF", tiffinfo=directory)
    with Image.open(io.BytesIO(content)) as image:
        assert image.tag_v2[262] == 0, "Pillow wrote another photometric interpretation"  # type: ignore[attr-defined]
    return content


def turned(image: Image.Image, format_name: str) -> bytes:
    """A file that lies on its side and says so in EXIF."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(image.transpose(Image.Transpose.ROTATE_90), format_name, exif=exif)


def with_text(n_bytes: int) -> bytes:
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * n_bytes, zip=True)
    return saved(Image.fromarray(COLOR), "PNG", pnginfo=text)


def jpeg(**options: Any) -> bytes:
    smooth = Image.fromarray(COLOR).resize((200, 150), Image.Resampling.BICUBIC)
    return saved(smooth, "JPEG", quality=90, **options)


def first_square(content: bytes) -> np.ndarray:
    """What the complete file gives."""
    return images.to_square(Image.open(io.BytesIO(content)), View(px=PX, fit="crop"))


@dataclass(frozen=True, kw_only=True)
class Case:
    """A file; the pixels that every reader must give, or a part of the reason why none gives any."""

    content: bytes
    expected: np.ndarray | str
    suffix: str = ".png"
    limits: Limits | None = None


DEEP_PNG = saved(Image.fromarray(DEEP), "PNG")
TRUNCATED = jpeg()
FULL_COLOR = COLOR.astype(np.uint16) * 256 + 77  # the lower 8 bits are dropped
UNKNOWN_LIMITS = "has more than 8 bits"

CASES: dict[str, Case] = {
    "L": Case(content=saved(Image.fromarray(RAMP), "PNG"), expected=gray(RAMP)),
    "1": Case(content=saved(Image.fromarray(RAMP > 100), "PNG"), expected=gray((RAMP > 100) * 255)),
    "RGB": Case(content=saved(Image.fromarray(COLOR), "PNG"), expected=COLOR),
    "P": Case(content=palette(None), expected=palette_colors(())),
    "RGB bmp": Case(content=saved(Image.fromarray(COLOR), "BMP"), expected=COLOR, suffix=".bmp"),
    "RGB tga": Case(content=saved(Image.fromarray(COLOR), "TGA"), expected=COLOR, suffix=".tga"),
    "RGB tiff": Case(content=saved(Image.fromarray(COLOR), "TIFF"), expected=COLOR, suffix=".tif"),
    "RGB webp": Case(content=saved(Image.fromarray(COLOR), "WEBP", lossless=True), expected=COLOR, suffix=".webp"),
    "CMYK": Case(
        content=saved(Image.fromarray(COLOR).convert("CMYK"), "TIFF"),
        expected=np.asarray(Image.fromarray(COLOR).convert("CMYK").convert("RGB")),
        suffix=".tif",
    ),
    "jfif": Case(content=jpeg(), expected=first_square(jpeg()), suffix=".jfif"),
    # alpha: what lies beneath does not show
    "RGBA": Case(content=saved(rgba(), "PNG"), expected=OVER_BACKGROUND),
    "RGBA opaque": Case(content=saved(rgba(np.full_like(HALF, 255)), "PNG"), expected=COLOR),
    "RGBA webp": Case(
        content=saved(rgba(), "WEBP", lossless=True, exact=True), expected=OVER_BACKGROUND, suffix=".webp"
    ),
    "RGBA tiff": Case(content=saved(rgba(), "TIFF"), expected=OVER_BACKGROUND, suffix=".tif"),
    "black icon": Case(
        content=saved(Image.fromarray(np.dstack([np.zeros_like(COLOR), HALF])), "PNG"),
        expected=gray(np.where(HALF == 255, 0, BACKGROUND[0])),
    ),
    "LA": Case(
        content=saved(Image.merge("LA", [Image.fromarray(RAMP), Image.fromarray(HALF)]), "PNG"),
        expected=gray(np.where(HALF == 255, RAMP, BACKGROUND[0])),
    ),
    "P with alpha": Case(content=palette(b"\xff\x00\xff\x00"), expected=palette_colors((1, 3))),
    "P with one transparent color": Case(content=palette(2), expected=palette_colors((2,))),
    "L with one transparent level": Case(
        content=saved(Image.fromarray(RAMP), "PNG", transparency=8),
        expected=gray(np.where(RAMP == 8, BACKGROUND[0], RAMP)),
    ),
    "RGB with one transparent color": Case(
        content=saved(Image.fromarray(gray(RAMP)), "PNG", transparency=(8, 8, 8)),
        expected=gray(np.where(RAMP == 8, BACKGROUND[0], RAMP)),
    ),
    "gif": Case(
        content=saved(Image.open(io.BytesIO(palette(None))), "GIF", transparency=1),
        expected=palette_colors((1,)),
        suffix=".gif",
    ),
    "animation: its first frame": Case(
        content=saved(
            Image.fromarray(RAMP), "GIF", save_all=True, append_images=[Image.fromarray(255 - RAMP)], duration=100
        ),
        expected=gray(RAMP),
        suffix=".gif",
    ),
    **{
        f"{mode} tiff, turned": Case(
            content=turned(Image.fromarray(TALL).convert(mode), "TIFF"),
            expected=images.to_square(Image.fromarray(TALL).convert(mode), View(px=PX, fit="crop")),
            suffix=".tif",
        )
        for mode in ("L", "P", "CMYK")
    },
    # more than 8 bits, or float
    "RGB of 16 bits in a ppm": Case(
        content=b"P6 8 8 65535\n" + (COLOR.astype(">u2") * 257).tobytes(),
        expected=COLOR,
        suffix=".ppm",
        limits=FULL_LIMITS,
    ),
    "RGB of 16 bits in a ppm, without limits": Case(
        content=b"P6 8 8 65535\n" + (COLOR.astype(">u2") * 257).tobytes(), expected=UNKNOWN_LIMITS, suffix=".ppm"
    ),
    "I;16": Case(content=DEEP_PNG, expected=gray(RAMP), limits=DEEP_LIMITS),
    "I;16, other limits": Case(
        content=DEEP_PNG, expected=gray(np.minimum(RAMP.astype(int) * 2, 255)), limits=(0.0, 2040.0)
    ),
    "I;16, limits unknown": Case(content=DEEP_PNG, expected=UNKNOWN_LIMITS),
    "I;16 with one transparent value": Case(
        content=png16(0, DEEP, chunk(b"tRNS", struct.pack(">H", 4 * 16))),
        expected=gray(np.where(RAMP == 4, BACKGROUND[0], RAMP)),
        limits=DEEP_LIMITS,
    ),
    "I;16 tiff": Case(
        content=saved(Image.fromarray(DEEP), "TIFF"), expected=gray(RAMP), limits=DEEP_LIMITS, suffix=".tif"
    ),
    "I;16B tiff": Case(
        content=saved(Image.fromarray(DEEP.astype(">u2")), "TIFF"),
        expected=gray(RAMP),
        limits=DEEP_LIMITS,
        suffix=".tif",
    ),
    "I;16 tiff, white is zero": Case(
        content=white_is_zero(DEEP), expected=gray(255 - RAMP), limits=DEEP_LIMITS, suffix=".tiff"
    ),
    "I;16 jpeg 2000": Case(
        content=saved(Image.fromarray(DEEP), "JPEG2000", irreversible=False),
        expected=gray(RAMP),
        limits=DEEP_LIMITS,
        suffix=".jp2",
    ),
    "pgm": Case(content=saved(Image.fromarray(DEEP), "PPM"), expected=gray(RAMP), limits=DEEP_LIMITS, suffix=".pgm"),
    "I": Case(
        content=saved(Image.fromarray(DEEP.astype(np.int32) - 2000), "TIFF"),
        expected=gray(RAMP),
        limits=(-2000.0, 2080.0),
        suffix=".tif",
    ),
    "I beyond float32": Case(
        content=saved(Image.fromarray(RAMP.astype(np.int32) + 2**30), "TIFF"),
        expected=gray(RAMP),
        limits=(2.0**30, 2.0**30 + 255),
        suffix=".tif",
    ),
    "F": Case(
        content=saved(Image.fromarray(RAMP.astype(np.float32) / 255), "TIFF"),
        expected=gray(RAMP),
        limits=(0.0, 1.0),
        suffix=".tif",
    ),
    "F, not finite": Case(
        content=saved(Image.fromarray(np.where(RAMP == 0, np.nan, 1).astype(np.float32)), "TIFF"),
        expected="not finite",
        limits=(0.0, 1.0),
        suffix=".tif",
    ),
    "I;16, all outside": Case(content=DEEP_PNG, expected="outside 5000 to 6000", limits=(5000.0, 6000.0)),
    "RGB of 16 bits": Case(content=png16(2, FULL_COLOR), expected=COLOR, limits=FULL_LIMITS),
    "RGB of 16 bits, limits unknown": Case(content=png16(2, FULL_COLOR), expected=UNKNOWN_LIMITS),
    "RGB of 16 bits, too few of them used": Case(
        content=png16(2, COLOR.astype(np.uint16) * 16), expected="convert it to 8 bits", limits=DEEP_LIMITS
    ),
    "RGBA of 16 bits": Case(
        content=png16(6, np.dstack([FULL_COLOR, HALF.astype(np.uint16) * 257])),
        expected=OVER_BACKGROUND,
        limits=FULL_LIMITS,
    ),
    "LA of 16 bits": Case(
        content=png16(4, np.dstack([RAMP.astype(np.uint16) * 257, HALF.astype(np.uint16) * 257])),
        expected=gray(np.where(HALF == 255, RAMP, BACKGROUND[0])),
        limits=FULL_LIMITS,
    ),
    "8 bits beside limits": Case(content=saved(Image.fromarray(RAMP), "PNG"), expected=gray(RAMP), limits=DEEP_LIMITS),
    # turned
    "EXIF": Case(content=turned(Image.fromarray(COLOR), "PNG"), expected=COLOR),
    "EXIF of RGBA": Case(content=turned(rgba(), "PNG"), expected=OVER_BACKGROUND),
    "EXIF of I;16": Case(content=turned(Image.fromarray(DEEP), "PNG"), expected=gray(RAMP), limits=DEEP_LIMITS),
    "EXIF that is broken": Case(
        content=saved(Image.fromarray(COLOR), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), expected=COLOR
    ),
    # damaged, and good all the same
    "a long text": Case(content=with_text(5 * 2**20), expected=COLOR),
    "a text beyond the limit": Case(content=with_text(17 * 2**20), expected="Decompressed data too large"),
    "no end marker": Case(content=TRUNCATED[:-2], expected=first_square(TRUNCATED), suffix=".jpg"),
    "half an end marker": Case(content=TRUNCATED[:-1], expected=first_square(TRUNCATED), suffix=".jpg"),
    "no end marker, progressive": Case(
        content=jpeg(progressive=True)[:-2], expected=first_square(jpeg(progressive=True)), suffix=".jpg"
    ),
    "a byte of the last block is missing": Case(content=TRUNCATED[:-3], expected="truncated", suffix=".jpg"),
    "half of the scan is missing": Case(
        content=TRUNCATED[: 3 * len(TRUNCATED) // 4], expected="truncated", suffix=".jpg"
    ),
    "half of the scan is missing, progressive": Case(
        content=jpeg(progressive=True)[:-100], expected="truncated", suffix=".jpg"
    ),
    # refused
    "text": Case(content=b"no picture", expected="is not a picture"),
    "empty": Case(content=b"", expected="is not a picture"),
    "EPS, which starts a program": Case(
        content=saved(Image.fromarray(COLOR), "EPS"), expected="EPS is not a format that is read", suffix=".jpg"
    ),
    "a decompression bomb": Case(
        content=b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 30000, 30000, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b"\0")),
        expected="decompression bomb",
    ),
    "a png cut short": Case(content=saved(Image.fromarray(COLOR), "PNG")[:-30], expected=""),
}
if features.check("avif"):
    AVIF = saved(rgba().resize((64, 64)), "AVIF")
    CASES["a broken avif"] = Case(content=AVIF[:200], expected="", suffix=".avif")


def by_store(path: Path, limits: Limits | None) -> tuple[np.ndarray | None, str]:
    items = Files(names=[path.name], paths=[str(path)], labels=[0]).items()
    return Decoder(items, View(px=PX, fit="crop"), limits)(0)


def by_predict(path: Path, limits: Limits | None) -> tuple[np.ndarray | None, str]:
    try:
        return images.read(path, View(px=PX, fit="crop", limits=limits), PX), ""
    except pictures.UnreadableError as error:
        return None, str(error)


def by_label_py(path: Path, limits: Limits | None) -> tuple[np.ndarray | None, str]:
    printed: list[str] = []
    bundle = {"store_px": PX, "input_px": PX, "fit": "crop", "range": list(limits) if limits else None}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda line, **options: printed.append(line))
        try:
            return label.read_picture(str(path), bundle), ""
        except SystemExit as stopped:
            assert stopped.code == 2 and len(printed) == 1 and printed[0].startswith(f"{path}: ")
            return None, printed[0]


def by_shard(path: Path, limits: Limits | None) -> tuple[np.ndarray | None, str]:
    url = tars.write(path.with_suffix(".tar"), {path.name: path.read_bytes()})
    ((_, _, square),) = shards.squares(url, View(px=PX, fit="crop", limits=limits))
    return square, "no reason is kept"


READERS: tuple[Callable[[Path, Limits | None], tuple[np.ndarray | None, str]], ...] = (
    by_store,
    by_predict,
    by_label_py,
    by_shard,
)


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
@pytest.mark.parametrize("name", CASES)
def test_every_reader_gives_the_same_answer(
    name: str, read: Callable[[Path, Limits | None], tuple[np.ndarray | None, str]], tmp_path: Path
) -> None:
    case = CASES[name]
    path = tmp_path / f"x{case.suffix}"
    path.write_bytes(case.content)
    square, reason = read(path, case.limits)
    if isinstance(case.expected, str):
        assert square is None and "\n" not in reason and "0x" not in reason
        assert case.expected in reason or read is by_shard
    else:
        assert square is not None, reason
        np.testing.assert_array_equal(square, case.expected)


def test_every_listed_suffix_is_of_a_format_that_is_read() -> None:
    formats = Image.registered_extensions()
    assert {formats.get(suffix) for suffix in SUFFIXES} - {None} <= pictures.FORMATS
    assert {suffix for suffix in SUFFIXES if suffix not in formats} <= {".mpo", ".avifs"}


MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "I", "F", "I;16")
DEEP_MODES = ("I", "F", "I;16")


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = Image.new(mode, (10, 8))
    square = images.to_square(image, View(px=8, fit="crop", limits=(0.0, 255.0)))
    assert square.shape == (8, 8, 3) and square.dtype == np.uint8
    if mode in DEEP_MODES:
        with pytest.raises(pictures.NeedsLimitsError):
            images.to_square(image, View(px=8, fit="crop"))


def test_fifo_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    for read in (by_store, by_predict, by_label_py):
        square, reason = read(tmp_path / "x.png", None)
        assert square is None and "is a FIFO" in reason
