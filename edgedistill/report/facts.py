"""The content of a run directory, read once; a part that is missing is None or empty.

The terminal, JSON and HTML reports are made from `Facts` alone, so they agree.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgedistill.agent.metrics import percentiles
from edgedistill.errors import first_names
from edgedistill.measurements import HOST_TO_HOST, BenchReport, Engine, EngineChoice
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
    Rung,
    SourceWeight,
    SourceWeights,
    StudentSpec,
    Unknown,
)
from edgedistill.report.blocks import one_line
from edgedistill.run import artifacts
from edgedistill.run.directory import Run
from edgedistill.run.files import as_plain

CHOSEN = ("suggested", "bulk")  # how labels came that are no random draw (data/label_file.py)
MAX_NAMES = 5  # of images left out in a line
LEAST_HALVES = 39  # (n - 1) / (n + 1) of the values lie between the least and the greatest of n: 95 % for 39


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The content of one run directory. `recipe` is the resolved recipe as plain JSON; `score` is its `data.score`.

    `predictions` are the classes of the test images by graph name, [N] each, and the true ones as "labels"; `answers`
    are those to labeled images with their confidence, [N] each; `licences` are the student's inputs; `catalog` says of
    every model what `sources: auto` did with it. `outdated`: the run was trained anew after its last export, so that
    its graphs, and what was measured on them, are left out.
    """

    run: Run
    recipe: dict[str, Any]
    score: str
    data: dict[str, Any]
    environment: dict[str, Any]
    steps: dict[str, Any]
    sources: SourceWeights | None
    catalog: tuple[dict[str, Any], ...] = ()
    more_labels: MoreLabels | None = None
    student: StudentSpec | None
    trials: tuple[dict[str, str], ...]
    curve: tuple[dict[str, Any], ...]
    out_of_fold: OutOfFold | None
    checkpoint: Checkpoint | None
    baseline: Baseline | None
    no_baseline: str
    outdated: bool = False
    models: tuple[OnnxModel, ...] = ()
    guarded: tuple[Guarded, ...] = ()
    kept: tuple[Kept, ...] | None = None
    engines: tuple[Engine, ...] = ()
    no_engines: str = ""
    calibration: dict[str, Any] = field(default_factory=dict)
    ladder: Ladder | None = None
    predictions: dict[str, np.ndarray] = field(default_factory=dict)
    unknown: Unknown | None = None
    answers: dict[str, np.ndarray] = field(default_factory=dict)
    licences: tuple[LicensedInput, ...] = ()
    bench: tuple[BenchReport, ...] = ()
    choices: tuple[EngineChoice, ...] = ()
    checksums: str = ""

    @property
    def title(self) -> str:
        """The recipe's name, or the directory's name if the recipe is unknown."""
        return str(self.recipe.get("name", self.run.path.name))

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the labels; empty if they are not known yet."""
        return tuple(str(name) for name in self.data.get("classes", ())) or (
            self.checkpoint.classes if self.checkpoint else ()
        )

    def class_name(self, label: int) -> str:
        """The name of a class on one line; `class 7` for an index that the run has no class for."""
        name = one_line(self.classes[label]) if 0 <= label < len(self.classes) else ""
        return name or f"class {label}"

    @property
    def data_licence(self) -> str:
        """The license of the images: the recipe's own word, else what the data set states; "" for none."""
        return str(self.recipe.get("data", {}).get("license") or self.data.get("licence") or "")

    @property
    def scored_images(self) -> str:
        """What accuracy was measured on: test images; with folds, labeled images, each by a fold's student."""
        return "test images" if self.out_of_fold is None else "labeled images out of fold"

    @property
    def default_graph(self) -> str:
        """Name of the graph that the bundle runs by default: the one kept for CPUs, else the first; "" for none."""
        kept = [choice.artefact for choice in self.kept or () if choice.target == "cpu"]
        return (kept or [model.name for model in self.models] or [""])[0]

    @property
    def spec(self) -> StudentSpec | None:
        """The spec of the trained student, else of the one that the search chose."""
        return self.checkpoint.spec if self.checkpoint else self.student

    @property
    def sizes_mb(self) -> dict[str, float]:
        """Size of each artifact on disk in MB, by its sha256."""
        return {model.sha256: model.size_mb for model in self.models}

    def rung(self, sha256: str) -> Rung | None:
        """The ladder's rung of the artifact with this sha256; None if it has none."""
        rungs = self.ladder.rungs if self.ladder else ()
        return next((rung for rung in rungs if rung.sha256 == sha256), None)


def read(run: Run) -> Facts:
    """Read what a finished or unfinished run contains.

    Raises:
        InputError: a file is broken, or is not what its step writes.
    """
    recipe = (artifacts.LOCK.find(run) or {}).get("recipe", {})
    data = artifacts.DATA.find(run) or {}
    in_folds, shipped = data.get("protocol", "folds") == "folds", artifacts.shipped(run)
    checkpoint, outdated = artifacts.RESULT.find(shipped), artifacts.is_outdated(run)
    return Facts(
        run=run,
        recipe=recipe,
        score=str(recipe.get("data", {}).get("score") or data.get("score") or "top1"),
        data=data,
        environment=artifacts.ENVIRONMENT.find(run) or {},
        steps=dict(run.manifest().get("steps", {})),
        sources=artifacts.WEIGHTS.find(run),
        catalog=tuple((artifacts.CHOSEN.find(run) or {}).get("catalog", ())),
        more_labels=artifacts.MORE_LABELS.find(run),
        student=artifacts.STUDENT.find(run),
        trials=artifacts.TRIALS.find(run) or (),
        curve=artifacts.METRICS.find(shipped) or (),
        out_of_fold=artifacts.OUT_OF_FOLD.find(shipped) if in_folds else None,  # files of former data may be there
        checkpoint=checkpoint,
        baseline=artifacts.BASELINE.find(run),
        no_baseline=str((artifacts.NO_BASELINE.find(run) or {}).get("why", "")),
        outdated=outdated,
        **({} if outdated else _of_graphs(run, recipe, in_folds)),
    )


def _of_graphs(run: Run, recipe: Mapping[str, Any], in_folds: bool) -> dict[str, Any]:
    """What the steps from export to bench have written, by the attributes of Facts."""
    graphs = [artifact.find(run) or () for artifact in (artifacts.EXPORTED, artifacts.QUANTIZED, artifacts.NCNN)]
    return {
        "models": tuple(itertools.chain.from_iterable(graphs)),
        "guarded": artifacts.GUARD.find(run) or (),
        "kept": artifacts.KEPT.find(run),
        "engines": _engines(run, recipe),
        "no_engines": str((artifacts.NO_ENGINES.find(run) or {}).get("why", "")),
        "calibration": artifacts.CALIBRATION.find(run) or {},
        "ladder": artifacts.LADDER.find(run),
        "predictions": _predictions(run, in_folds),
        "unknown": artifacts.UNKNOWN.find(run),
        "answers": artifacts.UNKNOWN_ANSWERS.find(run) or {},
        "licences": artifacts.read_licences(run),
        "bench": _bench(run, recipe),
        "choices": tuple(artifacts.read_choices(run)),
        "checksums": artifacts.CHECKSUMS.find(run) or "",
    }


def _predictions(run: Run, in_folds: bool) -> dict[str, np.ndarray]:
    """The classes of the test images by graph name; with folds, of the labeled images by the folds' students."""
    predictions = artifacts.PREDICTIONS.find(run) or {}
    answers = artifacts.FOLD_ANSWERS.find(artifacts.shipped(run)) if predictions and in_folds else None
    if answers is None:
        return predictions
    graphs = {
        name: answers[key].argmax(axis=1) for name, key in (("fp32", "fp32"), ("int8-cpu", "int8")) if key in answers
    }
    return {"labels": answers["labels"], **graphs}


def _bench(run: Run, recipe: Mapping[str, Any]) -> tuple[BenchReport, ...]:
    """The reports of all devices, in the order of the recipe's devices; within a backend fp32 comes first."""
    reports = artifacts.read_bench(run)
    device_order = list(recipe.get("bench", {}).get("devices", ()))

    def sort_key(report: BenchReport) -> tuple[Any, ...]:
        rank = device_order.index(report.device) if report.device in device_order else len(device_order)
        return (
            rank,
            report.device,
            report.backend,
            report.mode != HOST_TO_HOST,
            report.mode,
            report.precision != "fp32",
            report.artefact,
        )

    return tuple(sorted(reports, key=sort_key))


def _engines(run: Run, recipe: Mapping[str, Any]) -> tuple[Engine, ...]:
    """Engines built ahead of time: fp32 first, then fp16, each in the order of the recipe's capabilities."""
    engines = artifacts.read_engines(run)
    capability_order = list(recipe.get("export", {}).get("engines", ()))

    def sort_key(engine: Engine) -> tuple[Any, ...]:
        rank = (
            capability_order.index(engine.capability)
            if engine.capability in capability_order
            else len(capability_order)
        )
        return engine.artefact != "fp32", engine.artefact != "fp16", engine.artefact, rank, engine.capability

    return tuple(sorted(engines, key=sort_key))


@dataclass(frozen=True, kw_only=True)
class Headline:
    """What the summary compares: the rungs of the headline int8 artifact and of fp32, and one measurement."""

    int8: Rung | None
    fp32: Rung | None
    bench: BenchReport | None


def headline(facts: Facts) -> Headline:
    """Choose the fastest int8 artifact on the first measured device of the recipe, and fp32 to compare it with.

    If int8 was not measured, it is the ladder's int8 rung (one that a runtime executed before a simulated one), with
    the measurement of fp32 where there is one.
    """
    rungs = facts.ladder.rungs if facts.ladder else ()
    refused = {f"int8-{choice.target}" for choice in facts.kept or () if choice.precision != "int8"}
    reports = [
        report
        for report in facts.bench
        if report.device == facts.bench[0].device
        and report.artefact not in refused
        and report.mode == HOST_TO_HOST
        and report.latency.samples_ms  # none where the device answers otherwise than the host
    ]
    quantized = [report for report in reports if report.precision == "int8"]
    bench = min(quantized or reports, key=p50, default=None)
    int8 = facts.rung(bench.sha256) if bench and bench.precision == "int8" else None
    if int8 is None and not quantized:
        candidates = sorted(
            (rung for rung in rungs if rung.precision == "int8" and rung.artefact not in refused),
            key=lambda rung: rung.simulated,
        )
        int8 = candidates[0] if candidates else None
    exported = [rung for rung in rungs if rung.precision == "fp32"]
    return Headline(int8=int8, fp32=exported[-1] if exported else None, bench=bench)


def metrics(weights: SourceWeights) -> list[str]:
    """Names of the metrics that scored any source: the deciding metric first, the others in alphabetical order."""
    scored = {name for source in weights.sources for name in source.scores}
    return sorted(scored, key=lambda name: (name != weights.metric, name))


def ranked(weights: SourceWeights) -> list[SourceWeight]:
    """Sort the sources by descending weight, those of equal weight by descending score of the deciding metric."""

    def sort_key(source: SourceWeight) -> tuple[float, float]:
        score = source.scores.get(weights.metric)
        return -source.weight, -score.score if score else 0.0

    return sorted(weights.sources, key=sort_key)


def trained_on(record: OutOfFold) -> str:
    """The number of labels that each of the folds' students was trained on: `19`, or `19 to 20`."""
    numbers = sorted({fold.trained for fold in record.folds})
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def p50(report: BenchReport) -> float:
    """Median latency in ms; infinite if there are no samples."""
    return percentiles(report.latency.samples_ms)["p50"] if report.latency.samples_ms else float("inf")


def by_device(facts: Facts) -> list[tuple[str, str, list[BenchReport]]]:
    """Group the bench reports by device and backend: (device, backend, reports)."""
    pairs = itertools.groupby(facts.bench, key=lambda report: (report.device, report.backend))
    return [(device, backend, list(reports)) for (device, backend), reports in pairs]


def warnings(facts: Facts) -> list[str]:
    """All warnings of a run, without duplicates."""
    messages = [
        f"data: {len(names)} corrupt images left out: {first_names(list(map(str, names)), MAX_NAMES)}"
        for names in [facts.data.get("corrupt") or []]
        if names
    ]
    if facts.outdated:
        messages.append(
            "export: the graphs and their measurements are of an earlier student, and are not shown; run edgedistill "
            "export, then bench"
        )
    messages += _chosen_labels(facts)
    messages += _few_halves(facts)
    messages += [f"quantize: {text}" for text in facts.calibration.get("warnings", ())]
    messages += [
        f"engines: {engine.artefact} for {engine.capability} does not build: {engine.failed}"
        for engine in facts.engines
        if engine.failed
    ]
    messages += [
        f"{report.device}, {report.backend}, {report.title}: {text}"
        for report in facts.bench
        for text in (*report.warnings, *([report.verdict] if report.verdict not in {"", "quiet"} else []))
    ]
    current_sha256 = {rung.sha256 for rung in facts.ladder.rungs} if facts.ladder else set(facts.sizes_mb)
    current_sha256 |= {model.sha256 for model in facts.models if model.target == "ncnn"}
    messages += [
        f"{report.device}, {report.backend}, {report.title}: measured an earlier artifact ({report.sha256[:8]}); "
        "run edgedistill bench again"
        for report in facts.bench
        if current_sha256 and report.sha256 not in current_sha256
    ]
    if facts.ladder:
        messages += [
            f"gate failed: {gate.name} is {gate.value:g}, must be {gate.bound}"
            for gate in facts.ladder.gates
            if not gate.passed
        ]
    return list(dict.fromkeys(messages))


def _chosen_labels(facts: Facts) -> list[str]:
    """A warning if labels were chosen by a strategy: what is measured on these is not what it is on new images."""
    counts = {how: int(number) for how, number in (facts.data.get("how") or {}).items()}
    chosen, labels = sum(counts.get(how, 0) for how in CHOSEN), sum(counts.values())
    if not chosen:
        return []
    return [
        f"labels: {chosen} of {labels} were chosen, not drawn at random: accuracy, prior and threshold that are "
        "estimated on them are biased"
    ]


def _few_halves(facts: Facts) -> list[str]:
    """A warning if the intervals of the scores come from too few half-samples."""
    halves = int(facts.recipe.get("weigh", {}).get("bootstrap", LEAST_HALVES))
    if halves >= LEAST_HALVES or not facts.sources or not facts.sources.sources:
        return []
    return [
        f"weigh: the 95 % intervals come from too few half-samples ({halves}), at least {LEAST_HALVES} are needed; "
        f"set weigh.bootstrap to {LEAST_HALVES}"
    ]


def to_plain(value: Any) -> Any:
    """Convert records and containers to plain JSON values; a number that is not finite becomes None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_plain(as_plain(value))
    if isinstance(value, Mapping):
        return {str(key): to_plain(member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(member) for member in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)
