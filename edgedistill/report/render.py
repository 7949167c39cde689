"""The report of a run, finished or not: a table for the terminal, report.json, and one self-contained report.html.

facts.py reads the run, text.py makes the text and tables; plots.py, matrix.py and unknown.py draw. Torch is not loaded.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgedistill.agent.metrics import percentiles
from edgedistill.measurements import BenchReport, Latency
from edgedistill.report import matrix, plots, unknown
from edgedistill.report.blocks import clean
from edgedistill.report.classes import confusions
from edgedistill.report.facts import Facts, read, to_plain, warnings
from edgedistill.report.text import blocks, commercial, comparison, page, summary
from edgedistill.run import artifacts
from edgedistill.run.directory import Run
from edgedistill.run.files import atomic

TEMPLATE = Path(__file__).with_name("report.html")


def text(run: Run) -> str:
    """The report for a terminal, at most 100 columns wide; a line names each step that has not run.

    Raises:
        InputError: a file of the run is broken.
    """
    return page(read(run))


def compare(runs: Sequence[Run]) -> str:
    """A table that compares several runs, a row each, for a terminal.

    Raises:
        InputError: a file of a run is broken.
    """
    return comparison([read(run) for run in runs])


def collect(run: Run) -> dict[str, Any]:
    """The content of report.json: every record of the run, percentiles instead of raw samples, plain JSON values.

    Raises:
        InputError: a file of the run is broken.
    """
    return _content(read(run))


def _content(facts: Facts) -> dict[str, Any]:
    weights = facts.sources
    parts = {
        "version": 1,
        "run": facts.run.path.name,
        "summary": summary(facts),
        "score": facts.score,
        "recipe": facts.recipe,
        "data": facts.data,
        "environment": facts.environment,
        "sources": weights and {**to_plain(weights), "effective_sources": weights.effective_sources},
        "catalog": facts.catalog,
        "more_labels": facts.more_labels,
        "student": facts.spec,
        "trials": facts.trials,
        "val": [line for line in facts.curve if "val" in line],
        "out_of_fold": facts.out_of_fold,
        "result": facts.checkpoint,
        "baseline": facts.baseline,
        "models": facts.models,
        "engines": facts.engines,
        "calibration": {name: value for name, value in facts.calibration.items() if name != "sha256"} or None,
        "ladder": facts.ladder,
        "confusions": confusions(facts),
        "unknown": unknown.content(facts),
        "bench": [_bench_summary(report) for report in facts.bench],
        "licences": facts.licences,
        "commercial": commercial(facts),
        "warnings": warnings(facts),
        "not_run": [
            f"{block.title}: {line}" for block in blocks(facts) for line in block.lines if "not run yet" in line
        ],
        "steps": facts.steps,
    }
    content: dict[str, Any] = to_plain(parts)
    return content


def _bench_summary(report: BenchReport) -> dict[str, Any]:
    """A bench report with percentiles instead of its raw samples, which stay in bench/."""
    to_label = {start: _latency_summary(latency) for start, latency in report.to_label.items()}
    return {**to_plain(report), "latency": _latency_summary(report.latency), "to_label": to_label}


def _latency_summary(latency: Latency) -> dict[str, Any]:
    percentiles_ms = percentiles(latency.samples_ms) if latency.samples_ms else {}
    return {
        "samples": len(latency.samples_ms),
        "warmup": len(latency.warmup_ms),
        "window": latency.window,
        "batch": latency.batch,
        "percentiles_ms": percentiles_ms,
    }


def html(run: Run) -> str:
    """The report as one self-contained HTML page: style, plots and images are inline, and it loads nothing.

    Raises:
        InputError: a file of the run is broken.
    """
    return _render_html(read(run))


def _render_html(facts: Facts) -> str:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    pictures = plots.pictures(facts) | matrix.pictures(facts) | unknown.pictures(facts)
    drawings = {key: (Markup(picture.svg), picture.alt) for key, picture in pictures.items()}
    command = facts.environment.get("command", "")
    rendered = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=facts.title,
        about=facts.recipe.get("about", ""),
        run_name=facts.run.path.name,
        summary=summary(facts),
        warnings=warnings(facts),
        blocks=blocks(facts),
        pictures=drawings,
        mistakes=_mistakes(facts),
        disagreements=_disagreements(facts),
        command=shlex.join(map(str, command)) if isinstance(command, list) else command,
        environment={key: fact for key, fact in facts.environment.items() if key not in ("command", "packages")},
        packages=facts.environment.get("packages", {}),
        devices={f"{report.device}, {report.backend}": _flat_facts(report.facts) for report in facts.bench},
        hashes=_hashes(facts),
        checksums=facts.checksums,
        recipe=json.dumps(facts.recipe, indent=1, ensure_ascii=False),
        license=facts.data_licence,
        scored_images=facts.scored_images,
        compared_images="test images" if facts.out_of_fold is None else "compared images",
    )
    return clean(rendered)


def _flat_facts(facts: Any) -> dict[str, str]:
    return {str(key): fact if isinstance(fact, str) else json.dumps(to_plain(fact)) for key, fact in facts.items()}


def _hashes(facts: Facts) -> list[tuple[str, str]]:
    """Every output file of a finished step in the manifest, with its sha256."""
    return [(name, str(sha256)) for step in facts.steps.values() for name, sha256 in step.get("outputs", {}).items()]


def _mistakes(facts: Facts) -> list[tuple[str, tuple[str, ...]]]:
    """(data URI, caption lines) of the test images that the student misclassifies with the highest confidence."""
    mistakes = artifacts.MISTAKES.find(facts.run)
    columns = (
        (mistakes["images"], mistakes["labels"], mistakes["predicted"], mistakes["confidence"])
        if mistakes
        else ((),) * 4
    )
    return [
        (
            plots.jpeg(image),
            (
                f"predicted {facts.class_name(int(predicted))}",
                f"{100 * float(confidence):.0f} % confidence",
                f"is {facts.class_name(int(true))}",
            ),
        )
        for image, true, predicted, confidence in zip(*columns, strict=True)
    ]


def _disagreements(facts: Facts) -> list[tuple[str, tuple[str, ...]]]:
    """(data URI, caption lines) of the test images on which int8 and torch differ most."""
    arrays = artifacts.DISAGREEMENTS.find(facts.run)
    names = ("images", "labels", "torch", "int8", "artefact")
    columns = [arrays[name] for name in names] if arrays else [()] * len(names)
    return [
        (
            plots.jpeg(image),
            (
                f"torch {facts.class_name(int(torch_label))}",
                f"{artifact} {facts.class_name(int(int8_label))}",
                *([f"is {facts.class_name(int(true))}"] if true >= 0 else []),
            ),
        )
        for image, true, torch_label, int8_label, artifact in zip(*columns, strict=True)
    ]


def write(run: Run) -> list[Path]:
    """Write report.json and report.html into the run directory, each atomically; return their paths.

    Raises:
        InputError: a file of the run is broken.
    """
    facts = read(run)
    page_html, content = _render_html(facts), _content(facts)
    artifacts.REPORT_JSON.write(run, content)
    with atomic(artifacts.REPORT_HTML.path_in(run)) as temporary:
        temporary.write_text(page_html, encoding="utf-8")
    return [artifacts.REPORT_JSON.path_in(run), artifacts.REPORT_HTML.path_in(run)]
