"""Writers of miniature data sets in their published layouts; pictures are noise, so no two are alike."""

from __future__ import annotations

import csv
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from edgedistill.data.listing import Items

BIRDS = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross")


def noise(name: str, px: int = 12) -> Image.Image:
    """A noise picture determined by the name."""
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    return Image.fromarray(generator.integers(0, 256, (px, px + 4, 3), dtype=np.uint8))


def write_picture(path: Path, name: str | None = None) -> None:
    """Write `noise(name)` as a PNG, whatever the suffix; Pillow reads the format from the content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise(name or str(path.name)).save(path, format="PNG")


def folder_tree(root: Path, classes: tuple[str, ...] = ("ant", "bee"), train: int = 6, test: int = 2) -> Path:
    """root/train/<class>/ and root/test/<class>/, or root/<class>/ where `test` is 0."""
    for part, count in (("train", train), ("test", test)):
        for name in classes:
            for index in range(count):
                inner = f"{part}/{name}" if test else name
                write_picture(root / inner / f"{index:03d}.png", f"{part}{name}{index}")
    return root


def cub_tree(root: Path, train: int = 4, test: int = 2) -> Path:
    """CUB-200-2011 in the layout of its archive, with three birds."""
    tables: dict[str, list[str]] = {"images": [], "image_class_labels": [], "train_test_split": []}
    identity = 0
    for bird, name in enumerate(BIRDS, start=1):
        for index in range(train + test):
            identity += 1
            picture = f"{name}/{name[4:]}_{index:04d}_{identity}.jpg"
            write_picture(root / "images" / picture)
            tables["images"].append(f"{identity} {picture}")
            tables["image_class_labels"].append(f"{identity} {bird}")
            tables["train_test_split"].append(f"{identity} {int(index < train)}")
    tables["classes"] = [f"{bird} {name}" for bird, name in enumerate(BIRDS, start=1)]
    for table, lines in tables.items():
        (root / f"{table}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def csv_file(path: Path, rows: list[dict[str, str]], delimiter: str = ",") -> Path:
    """Write a CSV file with a header, and the pictures of its column `path` in the same folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for row in rows:
        write_picture(path.parent / row["path"], row["path"])
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def mnist_tree(root: Path, train: int = 20, test: int = 10) -> Path:
    """The four idx files of MNIST, unpacked, in the folder where torchvision looks for them."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", test)):
        pixels = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 28, 28) + pixels.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + labels.tobytes())
    return root


def memory_items(count: int, broken: frozenset[int] = frozenset(), classes: int = 2) -> Items:
    """Pictures generated on access; those in `broken` raise as Pillow does."""

    def load(row: int) -> Image.Image:
        if row in broken:
            raise OSError("image file is truncated (3 bytes not processed)")
        return noise(str(row))

    return Items(
        names=[f"{row:04d}" for row in range(count)], labels_N=np.arange(count, dtype=np.int64) % classes, load=load
    )


def bare_tree(root: Path, entries: tuple[str, ...]) -> None:
    """Make empty files, folders (`ant/`) and symbolic links (`ant/up -> ..`)."""
    root.mkdir(parents=True)
    for entry in entries:
        name, _, target = entry.partition(" -> ")
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if target:
            path.symlink_to(target)
        elif name.endswith("/"):
            path.mkdir(exist_ok=True)
        else:
            path.touch()


def pictures(*folders: str, count: int = 2) -> tuple[str, ...]:
    """Paths of images in folders, for `bare_tree`."""
    return tuple(f"{folder}/{index}.jpg" for folder in folders for index in range(count))
