"""What the devices said: a block per device and backend, and one table across all of them with the winner of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgedistill.agent.metrics import percentiles
from edgedistill.export.precision import choose_precision, higher_precision, speed_ratio
from edgedistill.records import HOST_TO_HOST, BenchReport, Kept
from edgedistill.report.blocks import Block, Row, interval, not_run, number, share
from edgedistill.report.facts import Facts, groups, p50

NONE = "-"


def blocks(facts: Facts) -> list[Block]:
    """Latency per device and backend, throughput where it was measured, and the devices side by side."""
    if not facts.bench:
        return [Block(key="latency", title="Latency", lines=(not_run("bench"),))]
    found = []
    for at, (device, backend, reports) in enumerate(groups(facts)):
        single = [one for one in reports if one.latency.batch == 1]
        if single:
            found.append(_latency(facts, f"latency-{at}", f"Latency on {device}", single))
        batched = [one for one in reports if one.latency.batch > 1]
        if batched:
            found.append(_throughput(f"throughput-{at}", f"Throughput of {backend} on {device}", batched))
    return [*found, _devices(facts)]


def _latency(facts: Facts, key: str, title: str, reports: Sequence[BenchReport]) -> Block:
    header = ("artefact", "p50 ms", "p90 ms", "p99 ms", "min-max ms", "times as fast as fp32", "size MB")
    first = reports[0]
    windows = dict.fromkeys(f"{_of(one)}{one.latency.window}" for one in reports)
    note = f"{first.backend} {first.backend_version}, batch 1; timed: {'; '.join(windows)}"
    lines = tuple(_on_device(facts, one) for one in reports)
    return Block(
        key=key,
        title=title,
        note=note,
        header=header,
        rows=tuple(_latency_row(facts, one) for one in reports),
        lines=lines,
    )


def _of(one: BenchReport) -> str:
    return "" if one.mode == HOST_TO_HOST else f"{one.mode}: "


def _latency_row(facts: Facts, one: BenchReport) -> Row:
    if not one.latency.samples_ms:
        return (one.called, *[NONE] * 5, _size(facts, one))
    marks = percentiles(one.latency.samples_ms)
    return (one.called, *_marks(one), f"{number(marks['min'])}-{number(marks['max'])}", _ratio(one), _size(facts, one))


def _marks(one: BenchReport) -> Row:
    """p50, p90 and p99 in ms."""
    if not one.latency.samples_ms:
        return (NONE,) * 3
    marks = percentiles(one.latency.samples_ms)
    return tuple(number(marks[name]) for name in ("p50", "p90", "p99"))


def _size(facts: Facts, one: BenchReport) -> str:
    return number(facts.sizes_mb[one.sha256]) if one.sha256 in facts.sizes_mb else NONE


def _ratio(one: BenchReport) -> str:
    if one.ratio_to_fp32 is None or one.precision == "fp32":
        return NONE
    middle, low, high = one.ratio_to_fp32
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def _on_device(facts: Facts, one: BenchReport) -> str:
    if not one.latency.samples_ms:
        return f"{one.called}: no latency: its answers are not those of the host"
    said = f"{one.called}: {len(one.latency.samples_ms)} samples"
    if one.accuracy is not None:
        said += f", {interval(one.accuracy, facts.score)} on {one.accuracy.n} images there"
    if one.agreement_with_host is not None:
        said += f", same answer as the host on {share(one.agreement_with_host)}"
    if one.energy is not None:
        said += f", {number(one.energy.mj_per_image)} mJ an image by {one.energy.meter} ({one.energy.covers})"
    first = [*one.facts.get("first_calls_ms", ())]
    if first:
        left = len(one.latency.warmup_ms)
        said += f", first call {number(max(first))} ms, {left} calls of warm-up left out"
    if one.verdict:
        said += f", {one.verdict.partition(',')[0]}"
    built = one.facts.get("runtime", {}).get("models", {}).get(one.artefact, {})
    if "engine" in built and one.mode == HOST_TO_HOST:
        said += f"; engine {built['engine']} ({number(built['build_seconds'])} s to build)"
    here = kept_there(facts, one)
    return f"{said}; to run here: {_words(here)}" if here else said


def _words(kept: Kept) -> str:
    return kept.artefact + ("" if kept.precision == "int8" else f", since {kept.why}")


def kept_there(facts: Facts, one: BenchReport) -> Kept | None:
    """Which precision this device should run, by its own measurement of an int8 graph; None for any other graph."""
    made = next((model for model in facts.models if model.sha256 == one.sha256), None)
    exported = any(model.precision == "fp32" for model in facts.models)
    if made is None or made.precision != "int8" or not exported or one.mode != HOST_TO_HOST:
        return None
    higher = higher_precision(made.target, facts.models)
    times = one.ratio_to_fp32 if higher.precision == "fp32" else _against(facts, higher.sha256, one)
    guarded = next((found for found in facts.guarded if found.target == made.target), None)
    if times is None and (guarded is None or guarded.holds):
        return None
    least = float(facts.recipe.get("quantize", {}).get("min_speedup", 1.05))
    return choose_precision(made.target, facts.models, guarded=guarded, min_speedup=least, ratio=times, untimed="")


def _against(facts: Facts, sha256: str, one: BenchReport) -> tuple[float, float, float] | None:
    """Another artefact's time over this one's, as measured on the same device by the same backend."""
    other = next(
        (
            base
            for base in facts.bench
            if base.sha256 == sha256
            and base.mode == one.mode
            and (base.device, base.backend) == (one.device, one.backend)
        ),
        None,
    )
    return None if other is None else speed_ratio(other, one)


def _throughput(key: str, title: str, reports: Sequence[BenchReport]) -> Block:
    rows = tuple(
        (one.artefact, str(one.latency.batch), number(1000 * one.latency.batch / p50(one)), _ratio(one))
        if one.latency.samples_ms
        else (one.artefact, str(one.latency.batch), NONE, NONE)
        for one in reports
    )
    header = ("artefact", "batch", "images/s", "times as fast as fp32")
    window = reports[0].latency.window.partition("; batches of ")[0]
    return Block(key=key, title=title, note=f"by the median of a batch; timed: {window}", header=header, rows=rows)


def _devices(facts: Facts) -> Block:
    """Every device beside the others, host to host, and which artefact each should run."""
    shown = [one for one in facts.bench if one.mode == HOST_TO_HOST]
    powered = any(one.energy for one in shown)
    header = ("device, backend, artefact", "accuracy", "p50 ms", "p90 ms", "p99 ms", "times as fast as fp32")
    rows = []
    for one in shown:
        accuracy = f"{100 * one.accuracy.score(facts.score):.1f} %" if one.accuracy else NONE
        energy = (number(one.energy.mj_per_image) if one.energy else NONE,) if powered else ()
        name = f"{one.device} {one.backend} {one.artefact}"
        rows.append((name, accuracy, *_marks(one), _ratio(one), *energy, _size(facts, one)))
    names = dict.fromkeys(one.device for one in shown)
    lines = tuple(winner(facts, [one for one in shown if one.device == name], name) for name in names)
    energies = ("mJ/image",) if powered else ()
    header = (*header, *energies, "MB")
    return Block(
        key="devices",
        title="Devices side by side",
        note="host to host, batch 1",
        header=header,
        rows=tuple(rows),
        lines=lines,
    )


def winner(facts: Facts, reports: Sequence[BenchReport], device: str) -> str:
    """What a device should run: of what answers as the host does and no guard refuses, the fastest within the budget.

    The budget is the recipe's `student.budget.latency_ms`, whatever device it was written for; without one there is
    none to meet.
    """
    refused = {_place(one) for one in reports if (kept := kept_there(facts, one)) and kept.precision != "int8"}
    known = {model.sha256 for model in facts.models}
    fit = [
        one
        for one in reports
        if one.latency.samples_ms and _place(one) not in refused and (one.sha256 in known or not known)
    ]
    if not fit:
        return f"{device}: nothing to run: no artefact of this export answers as the host does"
    best = min(fit, key=p50)
    said = f"{best.artefact} on {best.backend}, p50 {number(p50(best))} ms"
    bound: dict[str, Any] = facts.recipe.get("student", {}).get("budget", {}).get("latency_ms") or {}
    if not bound:
        return f"{device}: fastest: {said}"
    at, most = bound.get("percentile", 50), bound["at_most"]
    within = [one for one in fit if np.percentile(one.latency.samples_ms, at) <= most]
    budget = f"{most:g} ms at p{at:g}"
    if not within:
        return f"{device}: nothing meets {budget}; the nearest is {said}"
    best = min(within, key=p50)
    return f"{device}: fastest within {budget}: {best.artefact} on {best.backend}, p50 {number(p50(best))} ms"


def _place(one: BenchReport) -> tuple[str, str]:
    return one.backend, one.artefact
