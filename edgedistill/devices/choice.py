"""The choice of an engine with a precision for a device, by what all of them take there.

All that give the verified model's answers are timed in turn by one program on the device. The best of ten is best by
chance as well: so the fastest is timed against the simplest once more, in fresh processes, and is chosen only if the
whole interval of that ratio is above the bound. The simplest is the first pair that is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgedistill.agent.metrics import LEAST_PROCESSES, cell_medians, ratio_interval
from edgedistill.console import say
from edgedistill.devices.bench import Measurement, check_report, job_files, make_job, run_agent
from edgedistill.devices.bundle import LABELS, host_file, model_name, verify_bundle
from edgedistill.errors import EdgeDistillError
from edgedistill.measurements import HOST_TO_HOST, Device, EngineChoice, EngineRow
from edgedistill.recipe.schema import Bench
from edgedistill.records import OnnxModel

Ratio = tuple[float, float, float]
LEAST_ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A backend and a graph of the bundle that it runs."""

    backend: str
    model: OnnxModel

    @property
    def name(self) -> str:
        """The name in the job and in the table: "openvino int8-cpu"."""
        return f"{self.backend} {model_name(self.model)}"


def choose(
    bundle: Path,
    device: Device,
    pairs: Sequence[Pair],
    settings: Bench,
    *,
    min_speedup: float,
    max_drop: float,
    ssh_config: Path | None = None,
) -> EngineChoice:
    """Time all pairs in turn on a device, confirm the fastest against the first, and choose one of these two.

    Args:
        bundle: a folder that `write_bundle` filled.
        device: the device to measure on; the pairs' backends are there.
        pairs: at least two, the simplest first.
        settings: the recipe's `bench` section; at least three processes of three rounds are run.
        min_speedup: the lower end of the ratio's interval must be above it.
        max_drop: percentage points of accuracy that an engine with an arithmetic of its own may lose to the host; only
            a loss above it that is shown counts, as of int8.
        ssh_config: OpenSSH configuration file to use instead of the user's.

    Raises:
        InputError: the bundle is altered or lacks one of the models.
        EdgeDistillError: the device cannot be reached, the agent failed there, or the simplest pair
            answers wrongly.
    """
    simplest = pairs[0]
    say(f"  timing {len(pairs)} pairs of engine and precision in turn on {device.name}")
    facts, timed = _measure(bundle, device, pairs, settings=settings, ssh_config=ssh_config)
    if not timed[simplest.name].loses_at_most(max_drop):
        raise EdgeDistillError(
            f"{device.name}: {simplest.name} gives other answers than the host", "bench again, and compare versions"
        )
    rows = [_row(pair, timed[pair.name], timed[simplest.name], max_drop) for pair in pairs]
    fastest = min(
        (pair for pair, row in zip(pairs, rows, strict=True) if row.same), key=lambda pair: _median_ms(timed[pair.name])
    )
    ratio: Ratio | None = None
    if fastest != simplest:
        say(f"  confirming {fastest.name} against {simplest.name} in fresh processes")
        _, again = _measure(bundle, device, [simplest, fastest], settings=settings, ssh_config=ssh_config)
        ratio = _ratio(again[simplest.name], again[fastest.name])
    confirmed = ratio is not None and ratio[1] > min_speedup
    chosen = fastest if confirmed else simplest
    return EngineChoice(
        device=device.name,
        backend=chosen.backend,
        artefact=model_name(chosen.model),
        why=_why(simplest, fastest, ratio, min_speedup) + _refused(rows, max_drop),
        ratio=ratio,
        rows=tuple(rows),
        cpu=str(facts.get("cpu", "")),
        cpu_flags=tuple(facts.get("cpu_flags", ())),
        threads=settings.threads,
    )


def _why(simplest: Pair, fastest: Pair, ratio: Ratio | None, min_speedup: float) -> str:
    if ratio is None:
        return f"{simplest.name}: the simplest, and none was faster"
    middle, low, high = ratio
    speed = f"{middle:.2f} [{low:.2f}, {high:.2f}] times as fast as {simplest.name} in fresh processes"
    if low > min_speedup:
        return f"{fastest.name}: {speed}"
    return f"{simplest.name}: the simplest; {fastest.name} is {speed}, and more than {min_speedup:g} is required"


def _refused(rows: Sequence[EngineRow], max_drop: float) -> str:
    names = ", ".join(f"{row.backend} {row.artefact}" for row in rows if not row.same)
    return f"; refused, since answers differ or more than {max_drop:g} points are lost: {names}" if names else ""


def _measure(
    bundle: Path, device: Device, pairs: Sequence[Pair], *, settings: Bench, ssh_config: Path | None
) -> tuple[dict[str, Any], dict[str, Measurement]]:
    """The device's facts, and what was measured by the name of the pair."""
    files = {path.name: path for path in verify_bundle(bundle)}
    settings = settings.model_copy(
        update={
            "processes": max(LEAST_PROCESSES, settings.processes),
            "rounds": max(LEAST_ROUNDS, settings.rounds),
            "modes": (HOST_TO_HOST,),
            "offline": (),
        }
    )
    job = make_job(files, pairs[0].backend, settings, [pair.model for pair in pairs])
    entries = [
        {**entry, "name": pair.name, "backend": pair.backend} for pair, entry in zip(pairs, job["models"], strict=True)
    ]
    host = {pair.name: host_file(model_name(pair.model)) for pair in pairs}
    job |= {
        "models": entries,
        "host_predictions": {name: file for name, file in host.items() if file in files},
    }
    report = run_agent(device, [files[name] for name in job_files(job)], job, ssh_config)
    check_report(report, job, len(np.load(files[LABELS], allow_pickle=False)), device)
    return report.facts, {measurement.name: measurement for measurement in report.results}


def _row(pair: Pair, timed: Measurement, simplest: Measurement, max_drop: float) -> EngineRow:
    return EngineRow(
        backend=pair.backend,
        artefact=model_name(pair.model),
        p50_ms=float(np.median(timed.samples_ms)),
        ratio=None if timed.name == simplest.name else _ratio(simplest, timed),
        same=timed.loses_at_most(max_drop),
        agreement=timed.agreement_with_host,
        loss=timed.loss_to_host,
    )


def _median_ms(timed: Measurement) -> float:
    return float(np.median([median_ms for rounds_ms in _cells(timed) for median_ms in rounds_ms]))


def _ratio(simplest: Measurement, timed: Measurement) -> Ratio | None:
    """The simplest's time over this one's."""
    return ratio_interval(_cells(simplest), _cells(timed))


def _cells(timed: Measurement) -> list[list[float]]:
    return cell_medians(timed.samples_ms, timed.cells)
