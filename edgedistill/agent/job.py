"""The job: what to measure, checked whole before anything of it is loaded; and atomic JSON."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, NamedTuple, Optional, Sequence, Tuple, Union

VERSION = 3
MAX_TEXT = 1500  # characters of a message
MAX_COUNT = 2**31 - 1  # a runtime takes its threads as a C int
MAX_PROCESSES = 1000
MAX_SIDE = 10_000  # pixels of a picture


def _printable(text: str) -> str:
    """What a file holds must not move a terminal's cursor, or fill the screen; lines are kept."""
    if len(text) > MAX_TEXT:
        text = f"{text[: MAX_TEXT - 500]}... {text[-400:]}"
    return "".join(letter if letter.isprintable() or letter == "\n" else ascii(letter)[1:-1] for letter in text)


class AgentError(Exception):
    """One line for a person, and the exit code: 2 when the job or the device is not as it should be, else 1."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(_printable(message))
        self.exit_code = exit_code


@dataclass(frozen=True)
class Model:
    """One variant to measure; `path` is absolute, `backend` the job's unless the entry names another."""

    name: str
    path: Path
    sha256: str
    precision: str
    backend: str = ""


class Pictures(NamedTuple):
    """Size of the pictures that are labeled, and how they become the model's input (pictures.py)."""

    width: int
    height: int
    store_px: Union[int, Sequence[int]]
    fit: str


@dataclass(frozen=True)
class Job:
    """A checked job; paths are absolute, `samples` and `seconds` are least totals per variant over all processes.

    A variant is a model in one of the `modes` of measuring (backends.py). With `pictures`, each model is timed to the
    label, too (to_label.py).
    """

    backend: str
    models: Tuple[Model, ...]
    modes: Tuple[str, ...]
    images: Path
    labels: Path
    host_predictions: Dict[str, Path]
    threads: int
    processes: int
    rounds: int
    samples: int
    seconds: float
    accuracy_images: int
    pictures: Optional[Pictures] = None


def variant(model: str, mode: str) -> str:
    """What one model in one mode is called: the model's name alone where it is measured from host to host."""
    return model if mode == "host-to-host" else f"{model}, {mode}"


COUNTS = ("threads", "processes", "rounds", "samples", "accuracy_images")
KEYS = {"version", "backend", "models", "modes", "images", "labels", "host_predictions", "pictures", "seconds", *COUNTS}


def read(path: Path) -> Job:
    """Read and check a job file; its paths are relative to its folder.

    Raises:
        AgentError: exit code 2, with everything that is wrong with the file in one line.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AgentError(f"{path}: cannot be read as JSON ({error})") from None
    problems = _problems(raw)
    if problems:
        raise AgentError(f"{path}: {'; '.join(problems)}")
    base = path.resolve().parent
    return Job(
        backend=raw["backend"],
        models=tuple(_model(one, base, raw["backend"]) for one in raw["models"]),
        modes=tuple(raw["modes"]),
        images=base / raw["images"],
        labels=base / raw["labels"],
        host_predictions={name: base / file for name, file in raw["host_predictions"].items()},
        seconds=float(raw["seconds"]),
        pictures=None if raw["pictures"] is None else Pictures(**raw["pictures"]),
        **{name: raw[name] for name in COUNTS},
    )


def _model(entry: Dict[str, str], base: Path, backend: str) -> Model:
    path = base / entry["path"]
    return Model(entry["name"], path, entry["sha256"], entry["precision"], entry.get("backend", backend))


def _problems(raw: Any) -> list[str]:
    if not isinstance(raw, dict) or raw.get("version") != VERSION:
        return [f"not a job of version {VERSION}: the agent and the host differ, write the bundle again"]
    missing, unknown = sorted(KEYS - set(raw)), sorted(set(raw) - KEYS)
    if missing or unknown:
        names = [name if name.isprintable() else ascii(name) for name in unknown]
        return ["missing key " + name for name in missing] + ["unknown key " + name for name in names]
    texts = ["backend: must be a string"] if not _text(raw["backend"]) else []
    texts += [
        f"{key}: must be the name of a file beside the job" for key in ("images", "labels") if not _file(raw[key])
    ]
    most = {key: MAX_PROCESSES if key == "processes" else MAX_COUNT for key in COUNTS}
    counts = [
        f"{key}: must be a whole number from 1 to {most[key]}" for key in COUNTS if not _count(raw[key], most[key])
    ]
    seconds = [] if _number(raw["seconds"]) and 0 < raw["seconds"] < MAX_COUNT else ["seconds: must be > 0, and finite"]
    others = _model_problems(raw["models"]) + _mode_problems(raw["modes"]) + _host_problems(raw)
    others += _picture_problems(raw["pictures"])
    return texts + counts + seconds + others


def _model_problems(models: Any) -> list[str]:
    if not isinstance(models, list) or not models:
        return ["models: must be a list of at least one"]
    keys = {"name", "path", "sha256", "precision"}
    sets = (keys, keys | {"backend"})
    if not all(isinstance(one, dict) and set(one) in sets and all(map(_text, one.values())) for one in models):
        return ["models: each needs the strings name, path, sha256 and precision, may have backend, and nothing else"]
    outside = [f"models: {one['path']!r} is not the name of a file beside the job" for one in models
               if not _file(one["path"])]  # fmt: skip
    if outside:
        return outside
    names = [one["name"] for one in models]
    return [] if len(set(names)) == len(names) else ["models: a name is used twice"]


def _mode_problems(modes: Any) -> list[str]:
    if not isinstance(modes, list) or not modes or not all(map(_text, modes)) or len(set(modes)) != len(modes):
        return ["modes: must be a list of different names, at least one"]
    return []


def _host_problems(raw: Dict[str, Any]) -> list[str]:
    files = raw["host_predictions"]
    if not isinstance(files, dict) or not all(map(_file, files.values())):
        return ["host_predictions: must map model names to names of files beside the job"]
    return []


def _height_width(size: Any) -> bool:
    return isinstance(size, list) and len(size) == 2 and all(_count(side, MAX_SIDE) for side in size)


def _picture_problems(pictures: Any) -> list[str]:
    if pictures is None:
        return []
    sides = ("width", "height", "store_px")
    if not isinstance(pictures, dict) or set(pictures) != {*sides, "fit"}:
        return ["pictures: must have width, height, store_px and fit, and nothing else, or be null"]
    counts = [
        f"pictures: {side} must be a whole number from 1 to {MAX_SIDE}"
        for side in sides
        if not _count(pictures[side], MAX_SIDE) and not (side == "store_px" and _height_width(pictures[side]))
    ]
    return counts + ([] if pictures["fit"] in ("crop", "squash") else ["pictures: fit must be crop or squash"])


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and value.isprintable()


def _file(value: Any) -> bool:
    """A name alone: a job never reaches out of its folder."""
    return _text(value) and value not in {".", ".."} and not set(value) & set("/\\\0")


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _count(value: Any, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def check_hashes(job: Job) -> None:
    """Compare every model file with the sha256 that the job gives.

    Raises:
        AgentError: exit code 2; a file is missing or is not the one the job speaks of.
    """
    for model in job.models:
        try:
            found = sha256_file(model.path)
        except OSError as error:
            raise AgentError(f"{model.path}: cannot be read ({error.strerror})") from None
        if found != model.sha256:
            differ = f"sha256 is {found[:12]}..., the job says {model.sha256[:12]}..."
            raise AgentError(f"{model.path}: {differ}; nothing was loaded, ship the bundle again")


def sha256_file(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    running = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            running.update(block)
    return running.hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write JSON as `write_bytes` does.

    Raises:
        ValueError: a value is not finite, which JSON cannot hold.
    """
    write_bytes(path, json.dumps(value, allow_nan=False).encode() + b"\n")


def write_bytes(path: Path, data: bytes) -> None:
    """Write beside its place, sync and rename: `path` is whole or as it was."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        if temporary.exists():
            temporary.unlink()
