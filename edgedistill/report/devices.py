"""Measurements on devices: a block per device and backend, and a comparison with a recommendation per device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from edgedistill.agent.metrics import percentiles
from edgedistill.agent.noise import LEAST_SAMPLES
from edgedistill.export.precision import choose_precision, higher_precision, speed_ratio
from edgedistill.measurements import HOST_TO_HOST, BenchReport, EngineChoice, EngineRow
from edgedistill.records import Kept
from edgedistill.report.blocks import Block, Row, interval, not_run, number, share
from edgedistill.report.facts import Facts, by_device, p50

MISSING = "-"


def blocks(facts: Facts) -> list[Block]:
    """Blocks of latency per device and backend, of throughput where measured, and of the devices side by side."""
    if not facts.bench:
        return [Block(key="latency", title="Latency", lines=(not_run("bench"),))]
    sections = []
    for index, (device, backend, reports) in enumerate(by_device(facts)):
        single = [report for report in reports if report.latency.batch == 1]
        if single:
            sections.append(_latency(facts, f"latency-{index}", f"Latency on {device}", single))
        batched = [report for report in reports if report.latency.batch > 1]
        if batched:
            sections.append(_throughput(f"throughput-{index}", f"Throughput of {backend} on {device}", batched))
    choices = [_choice(index, choice) for index, choice in enumerate(facts.choices)]
    return [*sections, *choices, _comparison(facts)]


def _latency(facts: Facts, key: str, title: str, reports: Sequence[BenchReport]) -> Block:
    header: Row = ("artifact", "p50 ms", "p90 ms", "p99 ms", "min-max ms", "times as fast as fp32", "size MB")
    first = reports[0]
    windows = dict.fromkeys(f"{_mode_prefix(report)}{report.latency.window}" for report in reports)
    note = f"{first.backend} {first.backend_version}, batch 1; timed: {'; '.join(windows)}"
    lines = tuple(_device_line(facts, report) for report in reports)
    rows = tuple(_latency_row(facts, report) for report in reports)
    to_label = {start: latency.window for report in reports for start, latency in report.to_label.items()}
    if to_label:
        header = (*header, *(f"{start} to label, p50 ms" for start in to_label))
        rows = tuple((*row, *_to_label_cells(report, to_label)) for row, report in zip(rows, reports, strict=True))
        note += "".join(f"; {start} to label: {window}" for start, window in to_label.items())
    return Block(key=key, title=title, note=note, header=header, rows=rows, lines=lines)


def _to_label_cells(report: BenchReport, starts: Iterable[str]) -> Row:
    """The median from each start to the label, in ms."""
    latencies = [report.to_label.get(start) for start in starts]
    return tuple(number(percentiles(latency.samples_ms)["p50"]) if latency else MISSING for latency in latencies)


def _mode_prefix(report: BenchReport) -> str:
    return "" if report.mode == HOST_TO_HOST else f"{report.mode}: "


def _latency_row(facts: Facts, report: BenchReport) -> Row:
    if not report.latency.samples_ms:
        return (report.title, *[MISSING] * 5, _size_cell(facts, report))
    latencies_ms = percentiles(report.latency.samples_ms)
    return (
        report.title,
        *_percentile_cells(report),
        f"{number(latencies_ms['min'])}-{number(latencies_ms['max'])}",
        _ratio_cell(report),
        _size_cell(facts, report),
    )


def _percentile_cells(report: BenchReport) -> Row:
    """p50, p90 and p99 in ms."""
    if not report.latency.samples_ms:
        return (MISSING,) * 3
    latencies_ms = percentiles(report.latency.samples_ms)
    return tuple(number(latencies_ms[name]) for name in ("p50", "p90", "p99"))


def _size_cell(facts: Facts, report: BenchReport) -> str:
    return number(facts.sizes_mb[report.sha256]) if report.sha256 in facts.sizes_mb else MISSING


def _ratio_cell(report: BenchReport) -> str:
    if report.ratio_to_fp32 is None or report.precision == "fp32":
        return MISSING
    ratio, low, high = report.ratio_to_fp32
    return f"{ratio:.2f} [{low:.2f}, {high:.2f}]"


def _device_line(facts: Facts, report: BenchReport) -> str:
    if not report.latency.samples_ms:
        return f"{report.title}: no latency: its outputs differ from the host's"
    line = f"{report.title}: {len(report.latency.samples_ms)} samples"
    if report.accuracy is not None:
        line += f", {interval(report.accuracy, facts.score)} on {report.accuracy.n} images there{_counted(facts)}"
    if report.agreement_with_host is not None:
        line += f", same answer as the host on {share(report.agreement_with_host)}"
    if report.energy is not None:
        line += f", {number(report.energy.mj_per_image)} mJ per image by {report.energy.meter} ({report.energy.covers})"
    first_calls_ms = [*report.facts.get("first_calls_ms", ())]
    if first_calls_ms:
        warmup_calls = len(report.latency.warmup_ms)
        line += f", first call {number(max(first_calls_ms))} ms, {warmup_calls} warm-up calls excluded"
    if report.verdict:
        line += f", {report.verdict.partition(',')[0]}"
    engine = report.facts.get("runtime", {}).get("models", {}).get(report.artefact, {})
    if "engine" in engine and report.mode == HOST_TO_HOST:
        line += f"; engine {engine['engine']} ({number(engine['build_seconds'])} s to build)"
    if "precisions" in engine and report.mode == HOST_TO_HOST:
        layers = ", ".join(f"{count} in {kind}" for kind, count in engine["precisions"].items())
        line += f"; compiled to {layers}, {engine['fused']} nodes fused into others"
    choice = device_choice(facts, report)
    return f"{line}; to run here: {_choice_phrase(choice)}" if choice else line


def _counted(facts: Facts) -> str:
    """What a device does not know: which images belong together."""
    return "" if facts.answers.get("units") is None else " (the interval counts images, not groups)"


def _choice_phrase(choice: Kept) -> str:
    return choice.artefact + ("" if choice.precision == "int8" else f", since {choice.why}")


def device_choice(facts: Facts, report: BenchReport) -> Kept | None:
    """The precision to run on this device, chosen from its measurement of an int8 graph; None for any other graph."""
    model = next((model for model in facts.models if model.sha256 == report.sha256), None)
    exported = any(model.precision == "fp32" for model in facts.models)
    if model is None or model.precision != "int8" or not exported or report.mode != HOST_TO_HOST:
        return None
    higher = higher_precision(model.target, facts.models)
    ratio = report.ratio_to_fp32 if higher.precision == "fp32" else _speed_against(facts, higher.sha256, report)
    guarded = next((outcome for outcome in facts.guarded if outcome.target == model.target), None)
    if ratio is None and (guarded is None or guarded.holds):
        return None
    min_speedup = float(facts.recipe.get("quantize", {}).get("min_speedup", 1.05))
    return choose_precision(
        model.target, facts.models, guarded=guarded, min_speedup=min_speedup, ratio=ratio, untimed=""
    )


def _speed_against(facts: Facts, sha256: str, report: BenchReport) -> tuple[float, float, float] | None:
    """The time of another artifact divided by this one's, both measured on one device with one backend and mode."""
    baseline = next(
        (
            other
            for other in facts.bench
            if other.sha256 == sha256
            and other.mode == report.mode
            and (other.device, other.backend) == (report.device, report.backend)
        ),
        None,
    )
    return None if baseline is None else speed_ratio(baseline, report)


def _throughput(key: str, title: str, reports: Sequence[BenchReport]) -> Block:
    rows = tuple(
        (
            report.artefact,
            str(report.latency.batch),
            number(1000 * report.latency.batch / p50(report)),
            _ratio_cell(report),
        )
        if report.latency.samples_ms
        else (report.artefact, str(report.latency.batch), MISSING, MISSING)
        for report in reports
    )
    header = ("artifact", "batch", "images/s", "times as fast as fp32")
    window = reports[0].latency.window.partition("; batches of ")[0]
    return Block(key=key, title=title, note=f"by the median of a batch; timed: {window}", header=header, rows=rows)


def _choice(index: int, choice: EngineChoice) -> Block:
    """All pairs of engine and precision that competed on a device, and why one of them is chosen."""
    first = choice.rows[0]
    rows = tuple(
        (
            row.backend,
            row.artefact,
            number(row.p50_ms) if row.same else MISSING,
            MISSING if row.ratio is None or not row.same else "{:.2f} [{:.2f}, {:.2f}]".format(*row.ratio),
            MISSING if row.agreement is None else share(row.agreement),
            _loss_cell(row),
        )
        for row in choice.rows
    )
    note = f"ratios are to {first.backend} {first.artefact}; timed in turn, host to host"
    flags = f", with {', '.join(choice.cpu_flags)}" if choice.cpu_flags else ""
    threads = f"{choice.threads} {'thread' if choice.threads == 1 else 'threads'}"
    return Block(
        key=f"choice-{index}",
        title=f"Engine on {choice.device}",
        note=f"{note}, {threads}; {choice.cpu or 'processor unknown'}{flags}",
        header=("engine", "artifact", "p50 ms", "times as fast", "host's answers", "points lost"),
        rows=rows,
        lines=(f"to run here: {choice.why}",),
    )


def _loss_cell(row: EngineRow) -> str:
    """What accuracy loses against the host's answers, in points; of a pair with other answers that it was refused."""
    if row.loss is None:
        return MISSING if row.same else "other answers"
    loss, low, high = (100 * points for points in row.loss)
    return f"{loss:.1f} [{low:.1f}, {high:.1f}]" + ("" if row.same else ": refused")


def _comparison(facts: Facts) -> Block:
    """A table of all devices, measured host to host, and the artifact that each should run."""
    reports = [report for report in facts.bench if report.mode == HOST_TO_HOST]
    has_energy = any(report.energy for report in reports)
    header = ("device, backend, artifact", "accuracy", "p50 ms", "p90 ms", "p99 ms", "times as fast as fp32")
    rows = []
    for report in reports:
        accuracy = f"{100 * report.accuracy.score(facts.score):.1f} %" if report.accuracy else MISSING
        energy = (number(report.energy.mj_per_image) if report.energy else MISSING,) if has_energy else ()
        name = f"{report.device} {report.backend} {report.artefact}"
        rows.append(
            (name, accuracy, *_percentile_cells(report), _ratio_cell(report), *energy, _size_cell(facts, report))
        )
    names = dict.fromkeys(report.device for report in reports)
    lines = tuple(
        recommendation(facts, [report for report in reports if report.device == name], name) for name in names
    )
    energies = ("mJ/image",) if has_energy else ()
    header = (*header, *energies, "MB")
    return Block(
        key="devices",
        title="Devices side by side",
        note="host to host, batch 1",
        header=header,
        rows=tuple(rows),
        lines=lines,
    )


def recommendation(facts: Facts, reports: Sequence[BenchReport], device: str) -> str:
    """The line that recommends an artifact and backend for a device: the fastest candidate within the latency budget.

    Candidates have the outputs of the host and are not rejected by `device_choice`. The budget is the recipe's
    `student.budget.latency_ms`, whichever device it names; without a budget the fastest candidate is taken. Of fewer
    than LEAST_SAMPLES samples nothing is recommended.
    """
    rejected = {
        _identity(report)
        for report in reports
        if (choice := device_choice(facts, report)) and choice.precision != "int8"
    }
    exported_sha256 = {model.sha256 for model in facts.models}
    candidates = [
        report
        for report in reports
        if report.latency.samples_ms
        and _identity(report) not in rejected
        and (report.sha256 in exported_sha256 or not exported_sha256)
    ]
    if not candidates:
        return f"{device}: nothing to run: no artifact of this export gives the outputs of the host"
    fewest = min(len(report.latency.samples_ms) for report in candidates)
    if fewest < LEAST_SAMPLES:
        return f"{device}: too few samples ({fewest}) to recommend an artifact, at least {LEAST_SAMPLES} are needed"
    best = min(candidates, key=p50)
    description = f"{best.artefact} on {best.backend}, p50 {number(p50(best))} ms"
    budget_ms: dict[str, Any] = facts.recipe.get("student", {}).get("budget", {}).get("latency_ms") or {}
    if not budget_ms:
        return f"{device}: fastest: {description}"
    percentile, limit_ms = budget_ms.get("percentile", 50), budget_ms["at_most"]
    within = [report for report in candidates if np.percentile(report.latency.samples_ms, percentile) <= limit_ms]
    budget_text = f"{limit_ms:g} ms at p{percentile:g}"
    if not within:
        return f"{device}: nothing meets {budget_text}; the nearest is {description}"
    best = min(within, key=p50)
    return f"{device}: fastest within {budget_text}: {best.artefact} on {best.backend}, p50 {number(p50(best))} ms"


def _identity(report: BenchReport) -> tuple[str, str]:
    return report.backend, report.artefact
