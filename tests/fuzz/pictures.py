"""Pictures: read by `predict`, by the bundle's label.py, and as an image of a data set."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import struct
import sys
import warnings
import zlib
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import numpy as np
import PIL
from PIL import Image, ImageOps, PngImagePlugin, features

from edgedistill.data.load import preview
from edgedistill.devices.bundle import write_bundle
from edgedistill.errors import InputError
from edgedistill.predict.student import of_run
from edgedistill.recipe.data_section import Data
from edgedistill.records import OnnxModel
from edgedistill.run.directory import Run
from edgedistill.run.files import sha256_file
from tests.fuzz.kind import CANARY, Kind, RefusedError
from tests.fuzz.mutations import mangled
from tests.helpers import tiny_onnx

PX = tiny_onnx.PX
# format, mode, and how it is written
WRITTEN: tuple[tuple[str, str, dict[str, Any]], ...] = (
    *(("PNG", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")),
    ("PNG", "P", {"transparency": 3}),
    ("PNG", "RGB", {"save_all": True, "append_images": 2}),
    *(("JPEG", mode, {}) for mode in ("L", "RGB", "CMYK")),
    ("JPEG", "RGB", {"progressive": True, "quality": 30}),
    *(("WEBP", mode, {"lossless": lossless}) for mode in ("RGB", "RGBA") for lossless in (True, False)),
    ("WEBP", "RGB", {"save_all": True, "append_images": 2}),
    ("GIF", "P", {"save_all": True, "append_images": 2}),
    *(("TIFF", mode, {}) for mode in ("1", "L", "LA", "RGB", "RGBA", "CMYK", "LAB", "YCbCr", "I", "F", "I;16")),
    *(("TIFF", "RGB", {"compression": name}) for name in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits", "zstd")),
    *(("TIFF", "1", {"compression": name}) for name in ("group3", "group4")),
    *(("BMP", mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA")),
    *(("DIB", "RGB", {}), ("ICO", "RGBA", {}), ("ICNS", "RGBA", {}), ("DDS", "RGBA", {}), ("IM", "RGB", {})),
    *(("PPM", mode, {}) for mode in ("1", "L", "I", "RGB", "F")),
    *(("TGA", mode, {"rle": True}) for mode in ("L", "P", "RGB", "RGBA")),
    *(
        ("PCX", "P", {}),
        ("SGI", "RGB", {}),
        ("MSP", "1", {}),
        ("XBM", "1", {}),
        ("SPIDER", "F", {}),
        ("PDF", "RGB", {}),
    ),
    *(("EPS", "RGB", {}), ("JPEG2000", "RGB", {}), ("JPEG2000", "RGBA", {}), ("AVIF", "RGB", {}), ("MPO", "RGB", {})),
    *(("BLP", "P", {}), ("QOI", "RGB", {}), ("FITS", "L", {})),
)


def drawn(mode: str) -> Image.Image:
    """A small picture of a mode."""
    values_HWC = np.random.default_rng(3).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    color = Image.fromarray(values_HWC)
    if mode in ("I", "I;16", "F"):
        scaled = np.asarray(color.convert("L"), dtype=np.float64) * 200
        return Image.fromarray(scaled.astype({"I": np.int32, "I;16": np.uint16, "F": np.float32}[mode]))
    if mode == "LAB":
        return Image.frombytes("LAB", color.size, color.tobytes())
    return color.convert(mode)


@functools.cache
def encoded() -> list[bytes]:
    """One picture of every format and mode that this Pillow can write."""
    contents = []
    for name, mode, settings in WRITTEN:
        if settings.get("compression") == "zstd" and int(PIL.__version__.partition(".")[0]) < 12:
            continue  # the libtiff in the wheels of Pillow 11 crashes when it writes these
        image, stream, options = drawn(mode), io.BytesIO(), dict(settings)
        if "append_images" in options:
            options["append_images"] = [ImageOps.flip(image)] * options["append_images"]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of formats that Pillow will not write for ever
                image.save(stream, name, **options)
        except (OSError, ValueError, KeyError, SystemError):  # this Pillow, or this format, cannot write it
            continue
        contents.append(stream.getvalue())
    assert len(contents) > 40 or not features.check("libtiff"), len(contents)
    return [*contents, *described()]


def described() -> list[bytes]:
    """Pictures with text, a color profile, and EXIF data that turn them."""
    text = PngImagePlugin.PngInfo()
    text.add_text("about", "x" * 2000, zip=True)
    text.add_itxt("more", "é" * 500, "de", "mehr")
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "about"
    profiles: tuple[tuple[str, dict[str, Any]], ...] = (
        ("PNG", {"pnginfo": text}),
        ("JPEG", {"exif": exif, "icc_profile": b"x" * 300}),
        ("PNG", {"exif": exif, "icc_profile": b"y" * 300}),
        ("WEBP", {"exif": exif}),
        ("TIFF", {"exif": exif}),
    )
    contents = []
    for name, options in profiles:
        stream = io.BytesIO()
        drawn("RGB").save(stream, name, **options)
        contents.append(stream.getvalue())
    return contents


def make(random: Random) -> bytes:
    """A picture with changed bytes, and for PNG, half of the time, with the checksums put right."""
    content = mangled(random, random.choice(encoded()))
    return checked_png(content) if content.startswith(b"\x89PNG") and random.random() < 0.5 else content


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of PNG with its checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def checked_png(content: bytes) -> bytes:
    """PNG with the checksum of every chunk put right, so that a change reaches what reads the chunk."""
    position, fixed = 8, content[:8]
    while position + 12 <= len(content):
        length = int.from_bytes(content[position : position + 4], "big")
        if position + 12 + length > len(content):
            break
        fixed += chunk(content[position + 4 : position + 8], content[position + 8 : position + 8 + length])
        position += 12 + length
    return fixed + content[position:]


def png(width: int, height: int, *chunks: bytes, bits: int = 8, color: int = 2, data: bytes = b"") -> bytes:
    """A PNG that claims a size, with any chunks before its data."""
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    image = chunk(b"IDAT", data or zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + image + chunk(b"IEND", b"")


def cases() -> list[bytes]:
    """Crafted pictures: sizes that are claimed, texts that unpack to more, programs, no pictures at all."""
    bomb = zlib.compress(bytes(200_000_000), 9)
    sizes = ((1, 1), (13_000, 13_000), (20_000, 20_000), (2**31 - 1, 2**31 - 1), (1, 2**30), (0, 5), (2**31, 1))
    eps = (
        f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(%pipe%touch {CANARY}) (w) file\n%%EOF\n"
    ).encode()
    texts = [chunk(b"zTXt", b"a\0\0" + bomb), chunk(b"iTXt", b"a\0\1\0\0\0" + bomb), chunk(b"iCCP", b"a\0\0" + bomb)]
    bmp = bytearray(encoded_as("BMP"))
    bmp[18:26] = struct.pack("<ii", 30_000, -30_000)
    gif = bytearray(encoded_as("GIF"))
    gif[6:10] = struct.pack("<HH", 65_535, 65_535)
    return [
        *(png(*size) for size in sizes),
        *(png(24, 20, text) for text in texts),
        *(png(24, 20, chunk(b"tEXt", b"a\0" + bytes([65]) * size)) for size in (3 << 20, 40 << 20)),
        png(24, 20, *[chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(900_000)))] * 100),
        png(24, 20, *[chunk(b"tEXt", b"")] * 20_000),
        png(5000, 5000, bits=16, color=6, data=zlib.compress(bytes(5000 * (5000 * 8 + 1)), 1)),
        *(
            eps,
            b"%!PS\n" + eps,
            bytes(bmp),
            bytes(gif),
            b"",
            b"\0",
            b"\xff\xd8\xff",
            b"RIFF\xff\xff\xff\xffWEBPVP8 ",
            b"<svg/>",
        ),
        b"P6\n99999 99999\n255\n" + bytes(100),
        b"P3\n2 2\n255\n" + b"9" * 100_000,
        b"PF\n4 4\nnan\n" + bytes(192),
        b"\x80\x04\x95",
        *encoded(),
    ]


def encoded_as(name: str) -> bytes:
    """A small picture in RGB."""
    stream = io.BytesIO()
    drawn("RGB").save(stream, name)
    return stream.getvalue()


def prepare(folder: Path) -> None:
    """A run with a bundle of a tiny graph, and a table of pictures with the tried one among them."""
    graph = tiny_onnx.write(folder / "student.fp32.onnx")
    record = OnnxModel(
        path=graph.name,
        sha256=sha256_file(graph),
        precision="fp32",
        target="any",
        opset=18,
        parent_sha256="",
        size_mb=0.1,
    )
    about = {"classes": ["a", "b", "c"], "input_px": PX, "store_px": 2 * PX, "fit": "crop"}
    images_NHWC = tiny_onnx.images(3, seed=0)
    labels_N = np.arange(3)
    write_bundle(
        folder / "run/bundle",
        [(graph, record)],
        description=about,
        images_NHWC=images_NHWC,
        labels_N=labels_N,
        host_predictions={"fp32": labels_N},
    )
    rows = ["path,label"]
    for index in range(8):
        drawn("RGB").save(folder / f"{index}.png")
        rows += [f"{index}.png,{'ab'[index % 2]}", f"picture,{'ab'[index % 2]}"]
    (folder / "labels.csv").write_text("\n".join(rows), encoding="utf-8")


@functools.cache
def program(path: Path) -> ModuleType:
    """label.py as a program beside its modules, imported once."""
    spec = importlib.util.spec_from_file_location("label_of_bundle", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
        sys.modules.pop("pictures", None)
        sys.modules.pop("unsure", None)
    return module


def labeled(path: Path) -> str:
    """What label.py prints.

    Raises:
        RefusedError: it ended with 2, after a line on stderr.
    """
    out, err, words = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["label.py", str(path)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            program(path.parent / "run/bundle/label.py").main()
    except SystemExit as stop:
        assert stop.code == 2, stop.code
        raise RefusedError(err.getvalue().rstrip("\n")) from None
    finally:
        sys.argv = words
    return out.getvalue().rpartition(": ")[2]


def call(path: Path) -> None:
    """Read the picture in three ways; `predict` and label.py must agree."""
    errors: list[Exception] = []
    labels: list[str] = []
    for read in (labeled, predicted):
        try:
            labels.append(read(path).split()[0])
        except (InputError, RefusedError) as error:
            errors.append(error)
    assert len(errors) in (0, 2), f"label.py and predict differ: {errors}, {labels}"
    assert len(set(labels)) < 2, labels
    section = Data.model_validate({"kind": "csv", "file": "labels.csv"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        preview(section, path.parent, 2 * PX)
    if errors:
        raise errors[0]


def predicted(path: Path) -> str:
    """What `edgedistill predict` prints."""
    (prediction,) = of_run(Run(path=path.parent / "run")).predict(path)
    return prediction.label


KIND = Kind(
    name="image",
    file="picture",
    valid=lambda: encoded_as("PNG"),
    make=make,
    call=call,
    inputs=1300,
    prepare=prepare,
    errors=(InputError, RefusedError),
    cases=functools.cache(cases),
)
