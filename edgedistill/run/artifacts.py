"""The files of a run directory: path, content and reader of each.

Steps write these files; later steps, the report and other runs read them. All of them use this list.
"""

from __future__ import annotations

import csv
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from edgedistill.errors import InputError
from edgedistill.records import (
    BenchReport,
    Checkpoint,
    Engine,
    Guarded,
    Kept,
    Ladder,
    OnnxModel,
    Precision,
    SourceWeights,
    StudentSpec,
)
from edgedistill.run.files import atomic, json_lines, read_json, read_record, write_json

if TYPE_CHECKING:
    from edgedistill.run.directory import Run

T = TypeVar("T")
Pictures = dict[str, "np.ndarray"]


@dataclass(frozen=True, kw_only=True)
class Artifact(Generic[T]):
    """A file of a run directory.

    Attributes:
        path: path relative to the run directory.
        load: reads the content from an absolute path; raises InputError if the file is missing or broken.
    """

    path: str
    load: Callable[[Path], T]

    @property
    def name(self) -> str:
        """The file's name without its folder, for modules that write into a given folder."""
        return Path(self.path).name

    def path_in(self, run: Run) -> Path:
        """The absolute path in a run."""
        return run / self.path

    def read(self, run: Run) -> T:
        """The content.

        Raises:
            InputError: the file is missing, broken, or is not what its step writes.
        """
        return self.load(self.path_in(run))

    def find(self, run: Run) -> T | None:
        """The content, or None if there is no such file.

        Raises:
            InputError: the file is broken, or is not what its step writes.
        """
        return self.read(run) if self.path_in(run).is_file() else None

    def write(self, run: Run, content: Any) -> None:
        """Write a record, a sequence of records, or plain JSON values as JSON, atomically."""
        many = isinstance(content, list | tuple)
        write_json(self.path_in(run), [_as_json(entry) for entry in content] if many else _as_json(content))


def _as_json(content: Any) -> Any:
    return asdict(content) if hasattr(content, "__dataclass_fields__") else content


def _record(path: str, kind: type[T]) -> Artifact[T]:
    return Artifact(path=path, load=partial(read_record, kind=kind))


def _object(path: str) -> Artifact[dict[str, Any]]:
    return Artifact(path=path, load=_read_object)


def _read_object(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: is not a JSON object", "run the step that writes it again")
    return content


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error})", "run the step that writes it again") from None


def _read_rows(path: Path) -> tuple[dict[str, str], ...]:
    """The rows of a CSV file with a header."""
    return tuple(csv.DictReader(_read_text(path).splitlines()))


def _read_steps(path: Path) -> tuple[dict[str, Any], ...]:
    """The complete lines with a `step` of a JSON Lines file; an interrupted run may leave an incomplete last line."""
    entries = (entry for entry, _ in json_lines(_read_text(path)))
    return tuple(entry for entry in entries if isinstance(entry, dict) and "step" in entry)


def _read_pictures(path: Path, names: tuple[str, ...]) -> Pictures:
    """An .npz of pictures: `images` uint8 [M, px, px, 3] and one [M] array per other name."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: np.asarray(archive[name]) for name in ("images", *names)}
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error})", "run edgedistill export again") from None
    images = arrays["images"]
    if images.ndim != 4 or images.dtype != np.uint8 or {len(array) for array in arrays.values()} != {len(images)}:
        raise InputError(f"{path}: is not pictures with their labels", "run edgedistill export again")
    return arrays


def _read_arrays(path: Path) -> Pictures:
    with np.load(path, allow_pickle=False) as archive:
        return {name: np.asarray(archive[name]) for name in archive.files}


def save_arrays(path: Path, **arrays: Any) -> None:
    """Save arrays by np.savez_compressed, atomically."""
    with atomic(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)


# the run itself
RECIPE = Artifact(path="recipe.yaml", load=_read_text)  # as written
LOCK = _object("recipe.lock.json")  # as resolved: {"base", "recipe"}
MANIFEST = _object("manifest.json")
LOG = Artifact(path="log.jsonl", load=_read_text)
ENVIRONMENT = _object("env.json")
DATA = _object("data.json")
# weigh
SOURCES = _object("weigh/sources.json")
WEIGHTS = _record("weigh/weights.json", SourceWeights)
# search; study.journal* belongs to Optuna
STUDENT = _record("search/student.json", StudentSpec)
TRIALS = Artifact(path="search/trials.csv", load=_read_rows)
# distill
LAST_CHECKPOINT = Artifact(path="distill/last.pt", load=Path.read_bytes)
METRICS = Artifact(path="distill/metrics.jsonl", load=_read_steps)
STUDENT_WEIGHTS = Artifact(path="distill/student.safetensors", load=Path.read_bytes)
RESULT = _record("distill/result.json", Checkpoint)
TENSORBOARD = "tensorboard"
# export and quantize
EXPORTED = _record("export/models.json", tuple[OnnxModel, ...])
FP32_GRAPH = Artifact(path="export/student.fp32.onnx", load=Path.read_bytes)
QUANTIZED = _record("quantize/models.json", tuple[OnnxModel, ...])
GUARD = _record("quantize/guard.json", tuple[Guarded, ...])
CALIBRATION = _object("quantize/calibration.json")
QAT = "qat"
# keep, engines
KEPT = _record("keep/kept.json", tuple[Kept, ...])
NO_ENGINES = _object("engines/none.json")
# verify
LADDER = _record("verify/ladder.json", Ladder)
MISTAKES = Artifact(
    path="verify/mistakes.npz", load=partial(_read_pictures, names=("labels", "predicted", "confidence"))
)
DISAGREEMENTS = Artifact(
    path="verify/disagreements.npz", load=partial(_read_pictures, names=("labels", "torch", "int8", "artefact"))
)
PREDICTIONS = Artifact(path="verify/predictions.npz", load=_read_arrays)
# bundle, bench, report
BUNDLE = "bundle"
CHECKSUMS = Artifact(path="bundle/SHA256SUMS", load=_read_text)
BENCH = "bench"
REPORT_JSON = _object("report.json")
REPORT_HTML = Artifact(path="report.html", load=_read_text)


def bench_reports(device: str, backend: str, precision: Precision) -> str:
    """Pattern of the reports of one device, backend and precision; one file per model and mode."""
    return f"{BENCH}/{device}/{backend}-{precision}*.json"


def read_bench(run: Run) -> list[BenchReport]:
    """All reports of all devices, sorted by file name.

    Raises:
        InputError: one of the files is broken.
    """
    return [read_record(path, BenchReport) for path in sorted((run / BENCH).glob("*/*.json"))]


def read_engines(run: Run) -> list[Engine]:
    """The records of all engines that were built ahead of time, sorted by file name.

    Raises:
        InputError: one of the files is broken.
    """
    return [read_record(path, Engine) for path in sorted((run / "engines").glob("*.sm*.json"))]
