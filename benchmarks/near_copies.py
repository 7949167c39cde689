"""Near-copies in packs of pictures: how many planted copies are found, and how many pictures are joined by mistake.

    python -m benchmarks.near_copies --packs DIR [--names elpv_160 trash_160]

A line is one pack: all of its pictures, and changed copies of 60 of them for each change. Copies among the pack's own
pictures are counted apart: in packs of pictures that are all different they are mistakes. Small sets are draws of 125
pictures without any copy. The limits in `labels/near_copies.py` were chosen on elpv_160 and trash_160.

    python -m benchmarks.near_copies --many 100000 --packs DIR

measures seconds and memory on that many random crops of the packs' pictures.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from benchmarks.lines import append, read, run_program
from edgedistill.agent.machine import peak_memory_mb
from edgedistill.agent.pictures import square
from edgedistill.console import say
from edgedistill.data import datasets
from edgedistill.labels.near_copies import NearCopies, near_copies
from edgedistill.recipe.data_section import Data

KIND = "near_copies"
TUNING = ("elpv_160", "trash_160")
NAMES = (
    *TUNING,
    *("neu_steel_160", "chestxray_160", "ham10000_160"),
    *("pacs_photo_160", "pacs_art_160", "pacs_cartoon_160", "pacs_sketch_160", "gtsrb", "cifar10", "tinyimagenet60"),
)
COPIES, PX = 60, 128
DRAWS, DRAWN = 20, 125
CAPTION = "2024-05-17"


def compressed(image: Image.Image, quality: int) -> Image.Image:
    """The picture as a JPEG."""
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=quality)
    return Image.open(io.BytesIO(stream.getvalue())).convert("RGB")


def cropped(image: Image.Image, share: float, random: np.random.Generator) -> Image.Image:
    """The picture without that share of its width and of its height, at random sides."""
    width, height = (round(side * share) for side in image.size)
    left, top = (int(random.integers(0, most + 1)) for most in (width, height))
    return image.crop((left, top, image.width - width + left, image.height - height + top))


def captioned(image: Image.Image) -> Image.Image:
    """The picture with a date in a corner."""
    copy = image.copy()
    font = ImageFont.load_default(size=max(8, image.height // 12))
    place = (image.width * 0.04, image.height * 0.86)
    ImageDraw.Draw(copy).text(place, CAPTION, font=font, fill=(255, 255, 0))
    return copy


CHANGES: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "JPEG 40": lambda image, _: compressed(image, 40),
    "half the size": lambda image, _: image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC),
    "2 % cropped": lambda image, random: cropped(image, 0.02, random),
    "2 % cropped, JPEG 60": lambda image, random: compressed(cropped(image, 0.02, random), 60),
    "5 % cropped": lambda image, random: cropped(image, 0.05, random),
    "12 % brighter": lambda image, _: ImageEnhance.Brightness(image).enhance(1.12),
    "a date in a corner": lambda image, _: captioned(image),
}


def pictures(packs: Path, name: str) -> list[Image.Image]:
    """All pictures of a pack."""
    listing = datasets.listing(Data.model_validate({"kind": "hf", "path": str((packs / name).resolve())}), packs)
    parts = [part for part in (listing.train, listing.test) if part is not None]
    return [part.load(row).convert("RGB") for part in parts for row in range(len(part))]


def compared(squares: np.ndarray) -> NearCopies:
    """The near-copies among squares, uint8 [N, px, px, 3]."""
    hashes = np.array([hashlib.sha256(picture.tobytes()).hexdigest().encode() for picture in squares])
    return near_copies(squares, hashes)


def sets(pairs_P2: np.ndarray, n: int) -> np.ndarray:
    """Number of pictures in each set of n pictures that pairs connect."""
    graph = coo_array((np.ones(len(pairs_P2)), (pairs_P2[:, 0], pairs_P2[:, 1])), shape=(n, n))
    return np.bincount(connected_components(graph, directed=False)[1])


def measure(packs: Path, name: str) -> dict[str, Any]:
    """The line of one pack."""
    random = np.random.default_rng(0)
    originals = pictures(packs, name)
    px = min(PX, *(min(image.size) for image in originals))
    stored = [np.asarray(square(image, px, "crop")) for image in originals]
    drawn = random.permutation(len(originals))[: COPIES * len(CHANGES)].reshape(len(CHANGES), COPIES)
    copies = [
        np.asarray(square(change(originals[row], random), px, "crop"))
        for change, rows in zip(CHANGES.values(), drawn, strict=True)
        for row in rows
    ]
    started = time.perf_counter()
    outcome = compared(np.stack([*stored, *copies]))
    seconds = time.perf_counter() - started
    units_N, n = outcome.units_N, len(originals)
    is_found = units_N[n:] == units_N[drawn.ravel()]
    own_pairs = (outcome.pairs_P2 < n).all(axis=1)
    joined = sets(outcome.pairs_P2[own_pairs], n)  # not by way of a planted copy
    draws = [compared(np.stack([stored[row] for row in random.permutation(n)[:DRAWN]])) for _ in range(DRAWS)]
    return {
        "pack": name,
        "images": n,
        "px": px,
        "copies": COPIES,
        "found": dict(zip(CHANGES, is_found.reshape(drawn.shape).sum(axis=1).tolist(), strict=True)),
        "own_pairs": outcome.pairs_P2[own_pairs].tolist(),
        "own_scores": outcome.scores_P[own_pairs].round(4).tolist(),
        "joined": int(joined[joined > 1].sum()),
        "largest": int(joined.max()),
        "skipped": outcome.skipped,
        "drawn": DRAWN,
        "drawn_pairs": [len(draw.pairs_P2) for draw in draws],
        "seconds": round(seconds, 1),
    }


def measure_many(packs: Path, n: int) -> dict[str, Any]:
    """Seconds and peak memory on n random crops of half the side, at 64 pixels."""
    random = np.random.default_rng(0)
    originals = [image for name in NAMES for image in pictures(packs, name)]
    squares = np.empty((n, 64, 64, 3), dtype=np.uint8)
    for row in range(n):
        image = originals[row % len(originals)]
        squares[row] = np.asarray(square(cropped(image, 0.5, random), 64, "crop"))
    before_mb, started, cpu_started = peak_memory_mb(), time.perf_counter(), time.process_time()
    outcome = compared(squares)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    memory_mb = round(peak_memory_mb() - before_mb)
    facts = {"images": n, "px": 64, "seconds": round(seconds, 1), "cpu_seconds": round(cpu_seconds, 1)}
    outcomes = {"more_memory_mb": memory_mb, "pairs": len(outcome.pairs_P2), "skipped": outcome.skipped}
    return {"pack": "many", **facts, **outcomes}


def markdown(lines: list[dict[str, Any]]) -> str:
    """The table of the newest line of each pack."""
    newest = {line["pack"]: line for line in lines}
    many = newest.pop("many", None)
    if not newest:
        return "No pack has been measured yet."
    copies = next(iter(newest.values()))["copies"]
    header = ["pack", "px", "pictures", "joined", f"of {DRAWN}", *CHANGES]
    rows = [header, ["---"] * len(header), *(_row(line) for line in newest.values())]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    notes = (
        f'The columns of changes: how many of {copies} changed copies are found. "joined": pictures of the pack itself '
        f'that are joined to another one. "of {DRAWN}": such pairs in a draw of {DRAWN} pictures, the mean of {DRAWS}. '
        "\\* The limits were chosen on these packs."
    )
    if many is None:
        return f"{table}\n\n{notes}"
    return (
        f"{table}\n\n{notes} {many['images']:,} pictures took {many['seconds']:.0f} s, {many['cpu_seconds']:.0f} s of "
        f"them on the processor, and {many['more_memory_mb']:,} MB of memory on {many['cores']} cores ({many['cpu']})."
    )


def _row(line: dict[str, Any]) -> list[str]:
    name = rf"{line['pack']} \*" if line["pack"] in TUNING else line["pack"]
    joined = f"{line['joined']} ({100 * line['joined'] / line['images']:.1f} %)"
    pairs = sum(line["drawn_pairs"]) / len(line["drawn_pairs"])
    counts = [str(line["found"][change]) for change in CHANGES]
    return [name, str(line["px"]), f"{line['images']:,}", joined, f"{pairs:.2f}", *counts]


def table() -> str:
    """The table of the committed lines."""
    return markdown(list(read(KIND)))


def main() -> int:
    """Measure packs, a line each, or many pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--packs", type=Path, required=True, help="directory of packs: NAME/train.parquet, test.parquet"
    )
    parser.add_argument("--names", nargs="+", default=NAMES)
    parser.add_argument("--many", type=int, help="measure seconds and memory on this many crops")
    options = parser.parse_args()
    if options.many:
        print(append(KIND, measure_many(options.packs, options.many)))
        return 0
    for name in options.names:
        line = measure(options.packs, name)
        path = append(KIND, line)
        say(f"{name}: {line['joined']} of {line['images']} joined, found {line['found']}, {line['seconds']} s")
    print(path)
    return 0


if __name__ == "__main__":
    run_program(main)
