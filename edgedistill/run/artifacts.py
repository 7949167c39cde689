"""The files of a run directory: path, content and reader of each.

Steps write these files; later steps, the report and other runs read them. All of them use this list.
"""

from __future__ import annotations

import csv
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

from edgedistill.errors import InputError
from edgedistill.measurements import BenchReport, Engine, EngineChoice
from edgedistill.records import (
    Baseline,
    Checkpoint,
    Guarded,
    Kept,
    Ladder,
    LicensedInput,
    MoreLabels,
    OnnxModel,
    OutOfFold,
    Precision,
    SourceWeights,
    StudentSpec,
    Unknown,
)
from edgedistill.run.files import as_plain, atomic, json_lines, read_json, read_record, write_json

if TYPE_CHECKING:
    from edgedistill.run.directory import Run

T = TypeVar("T")
# folder or file of a run -> the command that writes it again
TRAIN = "run `edgedistill train` with its recipe again"
EXPORT = "run `edgedistill export` again"
COMMANDS = {
    **dict.fromkeys(("recipe.lock.json", "data.json", "sources.json", "weigh", "search", "folds"), TRAIN),
    **dict.fromkeys(("distill", "baseline"), TRAIN),
    **dict.fromkeys(("export", "quantize", "keep", "engines", "verify", "unknown", "bundle"), EXPORT),
    **dict.fromkeys(("bench", "choice"), "run `edgedistill bench` again"),
    "env.json": "delete it; the report then leaves it out",
    "report.json": "run `edgedistill report --format html` again",
}
Pictures = dict[str, "np.ndarray"]
# of an .npz that is damaged or something else
DAMAGE = (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error)


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
    def command(self) -> str:
        """What to do if the file is broken."""
        return command(self.path)

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
        try:
            return self.load(self.path_in(run))
        except InputError as error:
            raise InputError(error.message, error.fix or self.command) from None

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


def command(path: str) -> str:
    """What to do if a file of a run is broken; `path` is relative to the run."""
    return COMMANDS.get(path.partition("/")[0], "")


def _as_json(content: Any) -> Any:
    return as_plain(content) if hasattr(content, "__dataclass_fields__") else content


def _record(path: str, kind: type[T]) -> Artifact[T]:
    return Artifact(path=path, load=partial(read_record, kind=kind, command=command(path)))


def _object(path: str) -> Artifact[dict[str, Any]]:
    return Artifact(path=path, load=_read_object)


def _read_object(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: is not a JSON object")
    return content


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error})") from None


def _read_rows(path: Path) -> tuple[dict[str, str], ...]:
    """The rows of a CSV file with a header."""
    return tuple(csv.DictReader(_read_text(path).splitlines()))


def _read_steps(path: Path) -> tuple[dict[str, Any], ...]:
    """The complete lines with a `step` of a JSON Lines file; an interrupted run may leave an incomplete last line."""
    entries = (entry for entry, _ in json_lines(_read_text(path)))
    return tuple(entry for entry in entries if isinstance(entry, dict) and "step" in entry)


def _read_arrays(path: Path, names: tuple[str, ...] = (), optional: tuple[str, ...] = ()) -> Pictures:
    """The arrays of an .npz: those of `names`, or all if there are none; of `optional` those that it has."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            wanted = (*names, *(name for name in optional if name in archive.files)) if names else archive.files
            return {name: np.asarray(archive[name]) for name in wanted}
    except DAMAGE as error:
        raise InputError(f"{path}: cannot be read ({error})") from None


def _read_pictures(path: Path, names: tuple[str, ...]) -> Pictures:
    """An .npz of pictures: `images` uint8 [M, px, px, 3] and one [M] array per other name."""
    arrays = _read_arrays(path, ("images", *names))
    images = arrays["images"]
    if images.ndim != 4 or images.dtype != np.uint8 or {len(array) for array in arrays.values()} != {len(images)}:
        raise InputError(f"{path}: is not pictures with their labels")
    return arrays


def _read_labels(path: Path) -> dict[str, np.ndarray]:
    """An .npz of class indices, integers, all [N]; -1: no label."""
    arrays_N = _read_arrays(path)
    shapes = {array_N.shape for array_N in arrays_N.values()}
    integers = all(array_N.dtype.kind in "iu" and (array_N >= -1).all() for array_N in arrays_N.values())
    if len(shapes) != 1 or len(shapes.pop()) != 1 or not integers:
        raise InputError(f"{path}: is not labels of the test images")
    return {name: array_N.astype(np.int64) for name, array_N in arrays_N.items()}


def save_arrays(path: Path, **arrays: Any) -> None:
    """Save arrays by np.savez_compressed, atomically."""
    with atomic(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)


def fold_folder(fold: int) -> str:
    """Folder of the run of a fold, relative to the run directory."""
    return f"folds/{fold}"


# the run itself
RECIPE = Artifact(path="recipe.yaml", load=_read_text)  # as written
LOCK = _object("recipe.lock.json")  # as resolved: {"base", "recipe"}
MANIFEST = _object("manifest.json")
LOG = Artifact(path="log.jsonl", load=_read_text)
ENVIRONMENT = _object("env.json")
DATA = _object("data.json")
# choose
CHOSEN = _object("sources.json")
# weigh
SOURCES = _object("weigh/sources.json")
WEIGHTS = _record("weigh/weights.json", SourceWeights)
MORE_LABELS = _record("weigh/more_labels.json", MoreLabels)
# search; study.journal* belongs to Optuna
STUDENT = _record("search/student.json", StudentSpec)
TRIALS = Artifact(path="search/trials.csv", load=_read_rows)
SPEED = _object("search/speed.json")  # "cores": what `distill.steps: auto` reckons with in all trainings of the run


def half_folder(half: int, division: str) -> str:
    """Folder of a training without one half of the labels, relative to the run of the training on all of them.

    `division` is a hash of how they are divided: a student that was trained in another division has seen the half.
    """
    return f"halves/{half}-{division[:8]}"


# folds; a fold's folder holds weigh/, search/ and distill/ as a run does
OUT_OF_FOLD = _record("folds/folds.json", OutOfFold)
FOLD_ANSWERS = Artifact(path="folds/answers.npz", load=_read_arrays)
FOLD_UNLABELED = Artifact(path="folds/unlabeled.npz", load=_read_arrays)  # "rows", fp32, int8
# peer: the logits of the same student, trained on labels alone, of every train image; and its share
PEER = Artifact(path="peer/logits.npz", load=partial(_read_arrays, names=("logits", "weight", "temperature", "judged")))
# distill
LAST_CHECKPOINT = Artifact(path="distill/last.pt", load=Path.read_bytes)
METRICS = Artifact(path="distill/metrics.jsonl", load=_read_steps)
STUDENT_WEIGHTS = Artifact(path="distill/student.safetensors", load=Path.read_bytes)
RESULT = _record("distill/result.json", Checkpoint)
TENSORBOARD = "tensorboard"
# baseline; its folder also holds distill/ and folds/ as a run does, of the same student trained on labels alone
BASELINE = _record("baseline/baseline.json", Baseline)
NO_BASELINE = _object("baseline/none.json")
BASELINE_ANSWERS = Artifact(path="baseline/answers.npz", load=_read_arrays)
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
NCNN = _record("engines/ncnn.json", tuple[OnnxModel, ...])
# verify
LADDER = _record("verify/ladder.json", Ladder)
MISTAKES = Artifact(
    path="verify/mistakes.npz", load=partial(_read_pictures, names=("labels", "predicted", "confidence"))
)
DISAGREEMENTS = Artifact(
    path="verify/disagreements.npz", load=partial(_read_pictures, names=("labels", "torch", "int8", "artefact"))
)
PREDICTIONS = Artifact(path="verify/predictions.npz", load=_read_labels)  # "labels": the true ones; torch, fp32, ...
# unknown; the answers are those of the folds' students, or of the default graph on the test images; "units" only where
# some unit holds several of them
UNKNOWN = _record("unknown/unknown.json", Unknown)
UNKNOWN_ANSWERS = Artifact(
    path="unknown/answers.npz",
    load=partial(_read_arrays, names=("labels", "predicted", "confidence", "softmax"), optional=("units",)),
)
# bundle, bench, report
BUNDLE = "bundle"
DESCRIPTION = _object("bundle/bundle.json")
MODEL_CARD = Artifact(path="bundle/MODEL_CARD.md", load=_read_text)
CHECKSUMS = Artifact(path="bundle/SHA256SUMS", load=_read_text)
BENCH = "bench"
REPORT_JSON = _object("report.json")
REPORT_HTML = Artifact(path="report.html", load=_read_text)


def bench_reports(device: str, backend: str, precision: Precision) -> str:
    """Pattern of the reports of one device, backend and precision; one file per model and mode."""
    return f"{BENCH}/{device}/{backend}-{precision}*.json"


def engine_choice(device: str) -> Artifact[EngineChoice]:
    """The engine and precision chosen for a device."""
    return _record(f"choice/{device}.json", EngineChoice)


def read_choices(run: Run) -> list[EngineChoice]:
    """The choices of all devices, sorted by name.

    Raises:
        InputError: one of the files is broken.
    """
    return [read_record(path, EngineChoice, command("choice")) for path in sorted((run / "choice").glob("*.json"))]


def read_bench(run: Run) -> list[BenchReport]:
    """All reports of all devices, sorted by file name.

    Raises:
        InputError: one of the files is broken.
    """
    return [read_record(path, BenchReport, command(BENCH)) for path in sorted((run / BENCH).glob("*/*.json"))]


def whole(run: Run) -> Run:
    """The run that a run is a part of, or itself."""
    return replace(run, path=run.shared, shared=None) if run.shared else run


def labels_alone(run: Run) -> Run:
    """The part of a run in which the same student is trained on labels alone; that of a fold is that part's fold."""
    root = whole(run).path
    return replace(run, path=root / "baseline" / run.path.relative_to(root), shared=root)


def shipped(run: Run) -> Run:
    """The run whose student is exported: the run itself, or its part that is trained on labels alone.

    Raises:
        InputError: the record of the baseline is broken, or its student is of other data: a training with other data
            was stopped, and the run is as before it but for this part.
    """
    record = BASELINE.find(run)
    if not record or record.ships != "labels alone":
        return run
    part = labels_alone(run)
    if DATA.find(part) not in (None, DATA.find(run)):
        raise InputError(
            f"{part.path}: its student was trained on other data than the run",
            f"remove {run / BASELINE.path}, and train again",
        )
    return part


def is_outdated(run: Run) -> bool:
    """Whether the run was trained anew after its last export, so that its graphs are of an earlier student."""
    checkpoint, exported = RESULT.find(shipped(run)), EXPORTED.find(run)
    return bool(checkpoint and exported and exported[0].parent_sha256 not in ("", checkpoint.sha256))


def read_licences(run: Run) -> tuple[LicensedInput, ...]:
    """The inputs of the student and their licenses that bundle.json lists; () if there is no bundle, or an older one.

    Raises:
        InputError: the file is broken.
    """
    entries = (DESCRIPTION.find(run) or {}).get("licences", [])
    try:
        return TypeAdapter(tuple[LicensedInput, ...]).validate_python(entries)
    except ValidationError:
        path = DESCRIPTION.path_in(run)
        raise InputError(f"{path}: its licences are not a list of inputs", "run edgedistill export again") from None


def read_engines(run: Run) -> list[Engine]:
    """The records of all engines that were built ahead of time, sorted by file name.

    Raises:
        InputError: one of the files is broken.
    """
    return [read_record(path, Engine, command("engines")) for path in sorted((run / "engines").glob("*.sm*.json"))]
