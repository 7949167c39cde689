"""What a run directory says, read once: every part that is there, None or empty for a part that is not.

The pages (terminal, JSON, HTML) are made from `Facts` alone, so they cannot tell different stories.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgedistill.agent.metrics import percentiles
from edgedistill.records import (
    HOST_TO_HOST,
    BenchReport,
    Checkpoint,
    Engine,
    Guarded,
    Kept,
    Ladder,
    OnnxModel,
    Rung,
    SourceWeight,
    SourceWeights,
    StudentSpec,
)
from edgedistill.run import artifacts
from edgedistill.run.directory import Run


@dataclass(frozen=True, kw_only=True)
class Facts:
    """One run directory, read. `recipe` is the resolved recipe as plain JSON; `score` is its `data.score`."""

    run: Run
    recipe: dict[str, Any]
    score: str
    data: dict[str, Any]
    environment: dict[str, Any]
    steps: dict[str, Any]
    sources: SourceWeights | None
    student: StudentSpec | None
    trials: tuple[dict[str, str], ...]
    curve: tuple[dict[str, Any], ...]
    checkpoint: Checkpoint | None
    models: tuple[OnnxModel, ...]
    guarded: tuple[Guarded, ...]
    kept: tuple[Kept, ...] | None
    engines: tuple[Engine, ...]
    no_engines: str
    calibration: dict[str, Any]
    ladder: Ladder | None
    bench: tuple[BenchReport, ...]
    checksums: str

    @property
    def title(self) -> str:
        """The recipe's name; the directory's, where the recipe is not known."""
        return str(self.recipe.get("name", self.run.path.name))

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the labels; empty while they are not known."""
        return tuple(str(name) for name in self.data.get("classes", ())) or (
            self.checkpoint.classes if self.checkpoint else ()
        )

    @property
    def spec(self) -> StudentSpec | None:
        """The student: as trained, else as found by the search."""
        return self.checkpoint.spec if self.checkpoint else self.student

    @property
    def sizes_mb(self) -> dict[str, float]:
        """Size on disk by sha256 of the artefact, in MB."""
        return {model.sha256: model.size_mb for model in self.models}

    def rung(self, sha256: str) -> Rung | None:
        """The ladder's rung of this very artefact."""
        rungs = self.ladder.rungs if self.ladder else ()
        return next((rung for rung in rungs if rung.sha256 == sha256), None)


def read(run: Run) -> Facts:
    """Read whatever a finished or half-finished run holds.

    Raises:
        InputError: a file is there but broken, or is not what its step writes.
    """
    recipe = (artifacts.LOCK.find(run) or {}).get("recipe", {})
    data = artifacts.DATA.find(run) or {}
    graphs = [artifact.find(run) or () for artifact in (artifacts.EXPORTED, artifacts.QUANTIZED)]
    return Facts(
        run=run,
        recipe=recipe,
        score=str(recipe.get("data", {}).get("score") or data.get("score") or "top1"),
        data=data,
        environment=artifacts.ENVIRONMENT.find(run) or {},
        steps=dict(run.manifest().get("steps", {})),
        sources=artifacts.WEIGHTS.find(run),
        student=artifacts.STUDENT.find(run),
        trials=artifacts.TRIALS.find(run) or (),
        curve=artifacts.METRICS.find(run) or (),
        checkpoint=artifacts.RESULT.find(run),
        models=tuple(itertools.chain.from_iterable(graphs)),
        guarded=artifacts.GUARD.find(run) or (),
        kept=artifacts.KEPT.find(run),
        engines=_engines(run, recipe),
        no_engines=str((artifacts.NO_ENGINES.find(run) or {}).get("why", "")),
        calibration=artifacts.CALIBRATION.find(run) or {},
        ladder=artifacts.LADDER.find(run),
        bench=_bench(run, recipe),
        checksums=artifacts.CHECKSUMS.find(run) or "",
    )


def _bench(run: Run, recipe: Mapping[str, Any]) -> tuple[BenchReport, ...]:
    """Every device's reports, in the order of the recipe's devices, then fp32 first within a backend."""
    reports = artifacts.read_bench(run)
    wanted = list(recipe.get("bench", {}).get("devices", ()))

    def order(one: BenchReport) -> tuple[Any, ...]:
        place = wanted.index(one.device) if one.device in wanted else len(wanted)
        return place, one.device, one.backend, one.mode != HOST_TO_HOST, one.mode, one.precision != "fp32", one.artefact

    return tuple(sorted(reports, key=order))


def _engines(run: Run, recipe: Mapping[str, Any]) -> tuple[Engine, ...]:
    """What was built ahead of time: fp32 first, then fp16, each in the order of the recipe's capabilities."""
    found = artifacts.read_engines(run)
    wanted = list(recipe.get("export", {}).get("engines", ()))

    def order(one: Engine) -> tuple[Any, ...]:
        place = wanted.index(one.capability) if one.capability in wanted else len(wanted)
        return one.artefact != "fp32", one.artefact != "fp16", one.artefact, place, one.capability

    return tuple(sorted(found, key=order))


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The pair that the summary compares: the int8 artefact that matters, the fp32 one, and a measurement."""

    int8: Rung | None
    fp32: Rung | None
    bench: BenchReport | None


def headline(facts: Facts) -> Headline:
    """The fastest int8 artefact on the recipe's first device that answered, and fp32 to hold it against.

    Without a measurement of int8: the ladder's int8 rung (one that a runtime executed before a simulated one),
    and the measurement of fp32 where there is one.
    """
    rungs = facts.ladder.rungs if facts.ladder else ()
    refused = {f"int8-{one.target}" for one in facts.kept or () if one.precision != "int8"}
    first = [
        one
        for one in facts.bench
        if one.device == facts.bench[0].device and one.artefact not in refused and one.mode == HOST_TO_HOST
    ]
    quantized = [one for one in first if one.precision == "int8"]
    bench = min(quantized or first, key=p50, default=None)
    int8 = facts.rung(bench.sha256) if bench and bench.precision == "int8" else None
    if int8 is None and not quantized:
        candidates = sorted(
            (one for one in rungs if one.precision == "int8" and one.artefact not in refused),
            key=lambda one: one.simulated,
        )
        int8 = candidates[0] if candidates else None
    exported = [one for one in rungs if one.precision == "fp32"]
    return Headline(int8=int8, fp32=exported[-1] if exported else None, bench=bench)


def metrics(weights: SourceWeights) -> list[str]:
    """The metrics that scored any source: the deciding one first, the others by name."""
    scored = {name for one in weights.sources for name in one.scores}
    return sorted(scored, key=lambda name: (name != weights.metric, name))


def ranked(weights: SourceWeights) -> list[SourceWeight]:
    """The sources, heaviest first; of equal weights the higher score by the deciding metric first."""

    def place(one: SourceWeight) -> tuple[float, float]:
        mine = one.scores.get(weights.metric)
        return -one.weight, -mine.score if mine else 0.0

    return sorted(weights.sources, key=place)


def p50(report: BenchReport) -> float:
    """Median latency in ms; infinite where no sample was taken."""
    return percentiles(report.latency.samples_ms)["p50"] if report.latency.samples_ms else float("inf")


def groups(facts: Facts) -> list[tuple[str, str, list[BenchReport]]]:
    """The measurements by device and backend."""
    pairs = itertools.groupby(facts.bench, key=lambda one: (one.device, one.backend))
    return [(device, backend, list(reports)) for (device, backend), reports in pairs]


def warnings(facts: Facts) -> list[str]:
    """Everything a reader must know before trusting a figure, each once."""
    found = [
        f"data: {len(names)} corrupt images left out: {_some(names)}"
        for names in [facts.data.get("corrupt") or []]
        if names
    ]
    found += [f"quantize: {text}" for text in facts.calibration.get("warnings", ())]
    found += [
        f"engines: {one.artefact} for {one.capability} does not build: {one.failed}"
        for one in facts.engines
        if one.failed
    ]
    found += [
        f"{one.device}, {one.backend}, {one.called}: {text}"
        for one in facts.bench
        for text in (*one.warnings, *([one.verdict] if one.verdict.startswith("noisy") else []))
    ]
    known = {rung.sha256 for rung in facts.ladder.rungs} if facts.ladder else facts.sizes_mb.keys()
    found += [
        f"{one.device}, {one.backend}, {one.called}: measured an earlier artefact ({one.sha256[:8]}); "
        "run edgedistill bench again"
        for one in facts.bench
        if known and one.sha256 not in known
    ]
    if facts.ladder:
        found += [
            f"gate failed: {gate.name} is {gate.value:g}, must be {gate.bound}"
            for gate in facts.ladder.gates
            if not gate.passed
        ]
    return list(dict.fromkeys(found))


def _some(names: list[Any], most: int = 5) -> str:
    rest = len(names) - most
    return ", ".join(map(str, names[:most])) + (f" and {rest} more" if rest > 0 else "")


def plain(value: Any) -> Any:
    """Records and containers as JSON: mappings, lists, and None for a figure that is not finite."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)
