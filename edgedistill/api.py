"""The Python interface: a folder of pictures to a student in one call; docs/python.md shows all of it.

N images, D features, K classes of a source.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgedistill.errors import EdgeDistillError, InputError
from edgedistill.predict.student import Prediction, Student, load, of_run
from edgedistill.recipe.assignments import assignments
from edgedistill.recipe.options import listed_names
from edgedistill.report import facts, render
from edgedistill.run.directory import Run as RunDirectory
from edgedistill.run.directory import find_run, run_directory
from edgedistill.run.hooks import Callback, calling

if TYPE_CHECKING:
    from edgedistill.labels.to_label import Suggestion
    from edgedistill.recipe.file import Document
    from edgedistill.recipe.schema import Recipe
    from edgedistill.steps.context import Context
    from edgedistill.steps.step import Step

__all__ = [
    "Callback",
    "EdgeDistillError",
    "InputError",
    "Prediction",
    "Quantized",
    "Run",
    "Student",
    "bench",
    "export",
    "load",
    "quantize",
    "run",
    "similarity",
    "suggest",
    "train",
]

Names = str | Sequence[str]
LATEST = "runs/latest"
FRAME = '<iframe srcdoc="{page}" style="width:100%;height:600px;border:0"></iframe>'


class Run:
    """A run directory. `print(run)` shows the report; a notebook shows it as a page.

    Attributes:
        path: the directory.
    """

    def __init__(self, path: str | Path = LATEST) -> None:
        """Open a run directory, finished or not.

        Raises:
            InputError: there is none.
        """
        self.path = find_run(Path(path)).path

    @property
    def report(self) -> dict[str, Any]:
        """The content of report.json: all that was measured, as plain data.

        Raises:
            InputError: a file of the run is broken.
        """
        return render.collect(RunDirectory(path=self.path))

    @property
    def accuracy(self) -> float:
        """The accuracy of the student that `student` loads, in [0, 1], by the recipe's `data.score`.

        It is that on the test images, with folds that out of fold; before the export that of the torch model.

        Raises:
            InputError: the run has no trained student yet, or a file of it is broken.
        """
        known = facts.read(RunDirectory(path=self.path))
        rungs = known.ladder.rungs if known.ladder else ()
        shipped = next((rung.accuracy for rung in rungs if rung.artefact == known.default_graph), None)
        accuracy = shipped or (known.checkpoint.test if known.checkpoint else None)
        if accuracy is None:
            raise InputError(f"{self.path}: has no trained student yet", "run its recipe to the end")
        return accuracy.score(known.score)

    @property
    def student(self) -> Student:
        """The exported student.

        Raises:
            InputError: the run has no bundle (`export` makes it), the bundle was altered, or it is of an earlier
                student: the run was trained anew, and not exported since.
        """
        return of_run(RunDirectory(path=self.path))

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def __str__(self) -> str:
        return render.text(RunDirectory(path=self.path))

    def _repr_html_(self) -> str:
        return FRAME.format(page=html.escape(render.html(RunDirectory(path=self.path))))


class Quantized:
    """A quantized classifier of somebody else: what `quantize` wrote into a folder. `print(quantized)` shows it.

    Attributes:
        path: the folder, with the graphs, the record and the bundle.
    """

    def __init__(self, path: str | Path) -> None:
        """Open a folder that `quantize` wrote.

        Raises:
            InputError: it is none.
        """
        from edgedistill.imported import bench as imported

        self.path = Path(path)
        imported.read(self.path)

    @property
    def report(self) -> dict[str, Any]:
        """The content of quantized.json: all that was measured, as plain data.

        Raises:
            InputError: the file is broken.
        """
        from edgedistill.imported import bench as imported

        return imported.read(self.path)

    @property
    def student(self) -> Student:
        """The graph that is kept for a CPU.

        Raises:
            InputError: the bundle was altered.
        """
        return load(self.path / "bundle")

    def __repr__(self) -> str:
        return f"Quantized({str(self.path)!r})"

    def __str__(self) -> str:
        from edgedistill.imported import bench as imported

        return imported.quantized_text(self.path)


def quantize(
    model: str | Path,
    images: str | Path,
    *,
    labels: str | Path | None = None,
    out: str | Path | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    classes: Sequence[str] = (),
    output: str | None = None,
    px: int | tuple[int, int] | None = None,
    max_drop: float = 1.0,
    calibration_images: int = 300,
) -> Quantized:
    """Quantize a classifier that somebody else trained: calibration, both guards and a bundle; no recipe, no run.

    Args:
        model: its ONNX file, in float.
        images: a folder of pictures like those that it will see.
        labels: a labels.csv; without it graphs are compared with the float graph's own labels.
        out: the folder for all that is written; runs/quantize-<model> by default.
        preprocessing: mean, std, range, channels and fit; ImageNet's by default.
        classes: names of the classes, in the order of the outputs.
        output: name of the output with class scores; the first one by default.
        px: side of the input, or height and width, for a model that takes any size.
        max_drop: points of accuracy, or of agreement without labels, that int8 may lose; at most 100.
        calibration_images: at most half of the pictures calibrate.

    Raises:
        InputError: the model is refused, the pictures or labels do not fit, or an option is no value of its kind.
        GateError: the graph with its preprocessing inside answers otherwise than the file.
    """
    from edgedistill.imported import quantize as imported
    from edgedistill.imported import settings

    folder = imported.quantize(
        Path(model),
        Path(images),
        labels=None if labels is None else Path(labels),
        out=None if out is None else Path(out),
        preprocessing=settings.preprocessing(None, preprocessing or {}),
        settings=settings.guards(max_drop, calibration_images),
        classes=tuple(classes),
        output=output,
        px=px,
    )
    return Quantized(folder)


def run(
    data: str | Path,
    *,
    device: str | None = None,
    latency_ms: float | None = None,
    labels_per_class: int | None = None,
    sources: Names = (),
    minutes: float | None = None,
    download: bool = False,
    any_license: bool = False,
    settings: Mapping[str, Any] | None = None,
    runs: str | Path = "runs",
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Run the whole pipeline on a recipe or on data, for which a recipe is drafted first. A second call goes on.

    Args:
        data: a recipe, a folder of class folders or with a labels.csv, a table (CSV), a folder of parquet files, or an
            id of the hub.
        device: for data: a device of the inventory to measure on.
        latency_ms: for data: bound on the latency of one image in int8, in milliseconds.
        labels_per_class: for data: labels of each class to use.
        sources: for data: names of the catalog, in a list or a text with commas, or `none`; the run chooses by default.
        minutes: for data: about how long it may take; 10 by default.
        download: for data: weights may be downloaded.
        any_license: for data: sources may forbid commercial use.
        settings: values of the recipe to replace, as in {"distill.steps": 200}.
        runs: the folder of the run directories.
        callbacks: loggers and the like, which are told of the start, the steps, the evaluations and the end.

    Raises:
        InputError: the data or the recipe cannot be used.
        EdgeDistillError: a step failed, or another process uses the run directory.
    """
    from edgedistill import pipeline
    from edgedistill.draft import recipe as drafts
    from edgedistill.draft.settings import Wishes

    wishes = Wishes(
        device=device,
        latency_ms=latency_ms,
        labels_per_class=labels_per_class,
        sources=listed_names(sources),
        minutes=minutes,
        download=download,
        any_license=any_license,
    )
    document, recipe = drafts.load_or_draft(str(data), assignments(settings or {}), Path(runs), wishes=wishes, yes=True)
    return _run(document, recipe, Path(runs), steps=pipeline.export_and_bench_steps, callbacks=callbacks)


def train(
    recipe: str | Path,
    *,
    settings: Mapping[str, Any] | None = None,
    runs: str | Path = "runs",
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Weigh the sources, search the student and distill it; no export.

    Args:
        recipe: a recipe file.
        settings: values of the recipe to replace, as in {"distill.steps": 200}.
        runs: the folder of the run directories.
        callbacks: as of `run`.

    Raises:
        InputError: the recipe cannot be used.
        EdgeDistillError: a step failed, or another process uses the run directory.
    """
    from edgedistill import check, pipeline
    from edgedistill.recipe.file import read_recipe

    document = read_recipe(Path(recipe), assignments(settings or {}))
    return _run(document, check.load(document), Path(runs), steps=pipeline.no_steps, callbacks=callbacks)


def export(run: Run | str | Path = LATEST, *, int8: bool | None = None, qat: bool | None = None) -> Run:
    """Export a trained student: ONNX and int8 graphs, verified, and the bundle for a device.

    Args:
        run: a run, or its directory.
        int8: with or without int8 graphs; as in the recipe by default.
        qat: with or without quantization-aware distillation; as in the recipe by default.

    Raises:
        InputError: the run has no trained student.
        EdgeDistillError: a step failed, or a graph differs from the student.
    """
    from edgedistill import session

    return Run(session.export(_path(run), int8=int8, qat=qat).run.path)


def bench(run: Run | str | Path = LATEST, *, devices: Names = (), backends: Names = (), again: bool = False) -> Run:
    """Measure latency and accuracy of the exported graphs on devices.

    Args:
        run: a run, or its directory.
        devices: names of the inventory; those of the recipe by default. As the backends, a list or a text with commas.
        backends: such as onnxruntime-cpu; those of the recipe by default.
        again: measure again even if nothing has changed.

    Raises:
        InputError: the run has no trained student, or a device or backend is unknown.
        EdgeDistillError: a device cannot be reached, or a measurement failed.
    """
    from edgedistill import pipeline, session

    choices = {key: list(listed_names(names)) for key, names in (("devices", devices), ("backends", backends)) if names}
    context = session.reopen(_path(run), {"bench": choices})
    session.finish(context, pipeline.export_and_bench_steps, again=pipeline.bench_steps if again else pipeline.no_steps)
    return Run(context.run.path)


def suggest(data: str | Path, n: int = 50, *, runs: str | Path = "runs", seed: int = 0) -> list[Suggestion]:
    """The next pictures to label, each with its reason.

    Args:
        data: a folder of pictures, a recipe or a run directory.
        n: how many pictures.
        runs: the folder of the run directories, whose cache is used.
        seed: seed of the random draws.

    Raises:
        InputError: the data cannot be used, or every picture has a label.
    """
    from edgedistill.labeling import suggest as suggestions

    return list(suggestions.suggest(Path(data), n, runs=Path(runs), seed=seed).record.suggestions)


def similarity(
    features: ArrayLike, probs: ArrayLike | None, labels: ArrayLike, metric: str = "probe", **options: Any
) -> float:
    """How similar a source model is to a task: the score that the weights of sources come from; higher is more similar.

    Args:
        features: the source's features of labeled images [N, D].
        probs: its class probabilities for them [N, K]; None for a source without classes.
        labels: the images' classes, numbers or names [N].
        metric: a name of the recipe reference, such as parc, probe, logme or leep.
        options: of the metric, as in a recipe.

    Raises:
        InputError: there is no such metric or option, the metric needs classes, or the shapes do not fit.
    """
    from edgedistill.recipe.options import bound_options, did_you_mean
    from edgedistill.similarity.metrics import METRICS

    if metric not in METRICS:
        raise InputError(f"metric {metric}: is unknown{did_you_mean(metric, METRICS)}")
    features_ND, labels_N = np.asarray(features, dtype=np.float64), np.asarray(labels)
    probs_NK: NDArray[np.float64] | None = None if probs is None else np.asarray(probs, dtype=np.float64)
    if probs_NK is None and "classes" in METRICS[metric].needs:
        raise InputError(f"metric {metric}: needs class probabilities", "give probs, or take probe or parc")
    arrays = [features_ND, labels_N] if probs_NK is None else [features_ND, labels_N, probs_NK]
    if features_ND.ndim != 2 or labels_N.ndim != 1 or len({len(array) for array in arrays}) != 1:
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise InputError(f"metric {metric}: features [N, D] and labels [N] do not fit: {shapes}")
    score = METRICS[metric].score
    classes_N = np.unique(labels_N, return_inverse=True)[1].astype(np.int64)
    return float(score(features_ND, probs_NK, classes_N, **bound_options(score, options)))


def _run(
    document: Document,
    recipe: Recipe,
    root: Path,
    *,
    steps: Callable[[Context], Sequence[Step]],
    callbacks: Sequence[Callback],
) -> Run:
    """Run a recipe up to the last of `steps`, and tell the callbacks."""
    from edgedistill import session

    with calling(callbacks, run_directory(recipe, root).path, recipe.model_dump(mode="json")):
        return Run(session.run(document, recipe, root, steps).run.path)


def _path(run: Run | str | Path) -> Path:
    return run.path if isinstance(run, Run) else Path(run)
