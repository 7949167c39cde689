"""Whether a student answers or says "unknown", which frames it is least sure of, and what has changed since training.

bundle.json has a temperature and a threshold for each model, and in `unknown` the share of pictures that are answered
and the shares of the classes. A bundle of an older edgedistill has none of these: its models answer always. Pillow and
numpy are needed, and Python 3.8 or later. H and W pixels, C classes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any, BinaryIO, Dict, Iterator, List, Mapping, NamedTuple, Sequence

import numpy as np
from PIL import Image

LIST, DRIFT = "kept.jsonl", "drift.jsonl"
NAME = re.compile(r"kept-[0-9a-f]{16}\.png")
OWN = re.compile(r"kept-[0-9a-f]{16}\.png|\.kept-.*\.tmp")  # no other file is ever removed
MOST = 10000  # frames that may be kept
WINDOW = 1000  # frames of a line of DRIFT
WINDOWS = 1000  # lines of it
BOX = getattr(Image, "Resampling", Image).BOX  # Pillow before 9.1 has no Resampling
THUMBNAIL, ALIKE = (16, 16), 4.0  # two frames of one scene differ by less than so many of 255 gray levels
LISTED = 5  # classes in a line


class Answer(NamedTuple):
    """A class by its index, its probability, and whether it is too low to be an answer."""

    best: int
    probability: float
    unknown: bool


def probabilities(logits_C: np.ndarray, model: Mapping[str, Any]) -> np.ndarray:
    """The probability of each class under the temperature of a model of bundle.json, float64 [C]."""
    scaled_C = np.asarray(logits_C, dtype=np.float64) / float(model.get("temperature", 1.0))
    exponents_C = np.exp(scaled_C - scaled_C.max())
    return np.asarray(exponents_C / exponents_C.sum())


def answer(logits_C: np.ndarray, model: Mapping[str, Any]) -> Answer:
    """The most probable class under the temperature and the threshold of a model of bundle.json."""
    probabilities_C = probabilities(logits_C, model)
    best = int(np.argmax(logits_C))
    probability = float(probabilities_C[best])
    is_known = probability >= float(model.get("threshold", 0.0))  # not so of NaN
    return Answer(best, probability, not is_known)


class Keeper:
    """The least sure frames of a camera in a folder: at most `most`, a PNG each, and a line about each in kept.jsonl.

    Of frames that look alike only the least sure one is kept. What an earlier session has kept counts. Every file is
    complete or absent, whenever the program is stopped; other files in the folder are never touched.
    """

    def __init__(self, folder: str, most: int) -> None:
        """Create the folder, or go on with what is kept in it.

        Raises:
            OSError: the folder cannot be read or written.
        """
        self.folder, self.most = Path(folder), most
        self.folder.mkdir(parents=True, exist_ok=True)
        self.entries: List[Dict[str, Any]] = []
        self.thumbnails: List[np.ndarray] = []
        for entry in sorted(_lines(self.folder / LIST), key=_probability):
            if len(self.entries) < most:
                self._remember(entry)
        self._write_list()
        names = {entry["file"] for entry in self.entries}
        for path in self.folder.iterdir():  # of a session that was killed between two files
            if OWN.fullmatch(path.name) and path.name not in names and (path.is_file() or path.is_symlink()):
                path.unlink()

    def offer(self, rgb_HWC: np.ndarray, label: str, decision: Answer) -> None:
        """Keep a frame, RGB, uint8 [H, W, 3], if it is among the least sure.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        is_full = len(self.entries) >= self.most
        if is_full and decision.probability >= self.entries[-1]["probability"]:
            return
        thumbnail = _thumbnail(Image.fromarray(rgb_HWC))
        alike = [index for index, other in enumerate(self.thumbnails) if np.abs(thumbnail - other).mean() < ALIKE]
        if any(self.entries[index]["probability"] <= decision.probability for index in alike):
            return
        drops = alike or ([len(self.entries) - 1] if is_full else [])
        name = f"kept-{hashlib.sha256(np.ascontiguousarray(rgb_HWC).tobytes()).hexdigest()[:16]}.png"
        entry = {
            "file": name,
            "label": label,
            "probability": round(decision.probability, 6),
            "unknown": decision.unknown,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        with _replacing(self.folder / name) as stream:
            Image.fromarray(rgb_HWC).save(stream, format="PNG", compress_level=1)
        dropped = [self.entries[index]["file"] for index in drops]
        remaining = [index for index in range(len(self.entries)) if index not in drops]
        pairs = [(self.entries[index], self.thumbnails[index]) for index in remaining] + [(entry, thumbnail)]
        pairs.sort(key=lambda pair: _probability(pair[0]))
        self.entries, self.thumbnails = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        self._write_list()
        for old in set(dropped) - {name}:
            with contextlib.suppress(FileNotFoundError):  # somebody took it away to label it
                (self.folder / old).unlink()

    def add_drift(self, line: Mapping[str, Any]) -> None:
        """Add a line to drift.jsonl, which has the last WINDOWS.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        path = self.folder / DRIFT
        _write_lines(path, [*_lines(path)[-(WINDOWS - 1) :], line])

    def _remember(self, entry: Dict[str, Any]) -> None:
        """Go on with a frame of an earlier session, unless its file or its line is not one of this program."""
        name = str(entry.get("file"))
        if any(name == other["file"] for other in self.entries):
            return
        if not NAME.fullmatch(name) or not np.isfinite(_probability(entry)) or not (self.folder / name).is_file():
            return
        try:
            with Image.open(str(self.folder / name)) as image:
                self.thumbnails.append(_thumbnail(image))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return
        self.entries.append(entry)

    def _write_list(self) -> None:
        _write_lines(self.folder / LIST, self.entries)


def _probability(entry: Mapping[str, Any]) -> float:
    """The probability of a line; infinite where it has none, so that the line is left out."""
    probability = entry.get("probability")
    is_one = isinstance(probability, (int, float)) and 0 <= probability <= 1
    return float(probability) if is_one else float("inf")  # type: ignore[arg-type]


def _thumbnail(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L").resize(THUMBNAIL, BOX), dtype=np.float64)


def _lines(path: Path) -> List[Dict[str, Any]]:
    """The JSON objects of a file, a line each; what is none is left out."""
    if not path.is_file():  # a FIFO would block
        return []
    texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    entries = []
    for text in texts:
        try:
            entry = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict):
            entries.append(entry)
    return entries


def _write_lines(path: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    with _replacing(path) as stream:
        stream.write("".join(json.dumps(entry) + "\n" for entry in entries).encode())


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` when it is complete and on disk."""
    handle, temporary = tempfile.mkstemp(prefix=".kept-", suffix=".tmp", dir=str(path.parent))
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, str(path))
    except BaseException:
        os.unlink(temporary)
        raise


class Drift:
    """How many frames were answered, and which share of the answers each class has, beside those of bundle.json."""

    def __init__(self, bundle: Mapping[str, Any]) -> None:
        """Start to count; `bundle` has `unknown`."""
        self.classes, self.expected = bundle["classes"], bundle["unknown"]
        self._restart()

    def _restart(self) -> None:
        self.frames, self.counts = 0, [0] * len(self.classes)

    def add(self, decision: Answer) -> None:
        """Count the answer to a frame."""
        self.frames += 1
        self.counts[decision.best] += not decision.unknown

    def line(self) -> Dict[str, Any]:
        """What was counted, at least one frame; the counts start anew."""
        answered = sum(self.counts)
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "frames": self.frames,
            "answered": answered / self.frames,
            "expected": self.expected["answered"],
            "shares": {name: count / max(1, answered) for name, count in zip(self.classes, self.counts)},
            "expected_shares": dict(zip(self.classes, self.expected["shares"])),
        }
        self._restart()
        return line


def sentence(line: Mapping[str, Any]) -> str:
    """A line of `Drift` for people; of many classes those whose share differs most."""
    shares, expected = line["shares"], line["expected_shares"]
    names = sorted(shares, key=lambda name: -abs(shares[name] - expected.get(name, 0.0)))[:LISTED]
    parts = [f"{name} {shares[name]:.0%} ({expected.get(name, 0.0):.0%})" for name in names]
    text = f"drift: {line['answered']:.0%} of {line['frames']} frames answered, {line['expected']:.0%} expected; "
    return text + f"of the answers (expected): {', '.join(parts)}"
