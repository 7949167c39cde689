"""The report of a run, finished or not: a table for the terminal, report.json, and one self-contained report.html.

Everything is read by report_facts, put into words by report_text, drawn by report_plots. Torch is never loaded.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgedistill.agent.metrics import percentiles
from edgedistill.records import BenchReport
from edgedistill.report import plots
from edgedistill.report.blocks import clean
from edgedistill.report.facts import Facts, plain, read, warnings
from edgedistill.report.text import blocks, page, summary, versus
from edgedistill.run import artifacts
from edgedistill.run.directory import Run
from edgedistill.run.files import atomic

TEMPLATE = Path(__file__).with_name("report.html")


def text(run: Run) -> str:
    """The report for a terminal, 100 columns at most; a step that has not run is a line that says so.

    Raises:
        InputError: a file of the run is broken.
    """
    return page(read(run))


def compare(runs: Sequence[Run]) -> str:
    """Several runs side by side, a row each, for a terminal.

    Raises:
        InputError: a file of a run is broken.
    """
    return versus([read(run) for run in runs])


def collect(run: Run) -> dict[str, Any]:
    """The content of report.json: every record of the run, percentiles instead of raw samples, plain JSON values.

    Raises:
        InputError: a file of the run is broken.
    """
    return _collect(read(run))


def _collect(facts: Facts) -> dict[str, Any]:
    weights = facts.sources
    parts = {
        "version": 1,
        "run": facts.run.path.name,
        "summary": summary(facts),
        "score": facts.score,
        "recipe": facts.recipe,
        "data": facts.data,
        "environment": facts.environment,
        "sources": weights and {**plain(weights), "effective_sources": weights.effective_sources},
        "student": facts.spec,
        "trials": facts.trials,
        "val": [line for line in facts.curve if "val" in line],
        "result": facts.checkpoint,
        "models": facts.models,
        "engines": facts.engines,
        "calibration": {name: value for name, value in facts.calibration.items() if name != "sha256"} or None,
        "ladder": facts.ladder,
        "bench": [_measured(one) for one in facts.bench],
        "warnings": warnings(facts),
        "not_run": [f"{one.title}: {line}" for one in blocks(facts) for line in one.lines if "not run yet" in line],
        "steps": facts.steps,
    }
    whole: dict[str, Any] = plain(parts)
    return whole


def _measured(report: BenchReport) -> dict[str, Any]:
    """A measurement without its raw samples: those stay in bench/."""
    latency = report.latency
    marks = percentiles(latency.samples_ms) if latency.samples_ms else {}
    short = {
        "samples": len(latency.samples_ms),
        "warmup": len(latency.warmup_ms),
        "window": latency.window,
        "batch": latency.batch,
        "percentiles_ms": marks,
    }
    return {**plain(report), "latency": short}


def html(run: Run) -> str:
    """The report as one HTML file that loads nothing from anywhere: style, drawings and pictures stand inside it.

    Raises:
        InputError: a file of the run is broken.
    """
    return _html(read(run))


def _html(facts: Facts) -> str:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    drawn = {key: (Markup(one.svg), one.alt) for key, one in plots.pictures(facts).items()}
    command = facts.environment.get("command", "")
    rendered = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=facts.title,
        about=facts.recipe.get("about", ""),
        run_name=facts.run.path.name,
        summary=summary(facts),
        warnings=warnings(facts),
        blocks=blocks(facts),
        pictures=drawn,
        mistakes=_mistakes(facts),
        partings=_partings(facts),
        command=shlex.join(map(str, command)) if isinstance(command, list) else command,
        environment={key: value for key, value in facts.environment.items() if key not in ("command", "packages")},
        packages=facts.environment.get("packages", {}),
        devices={f"{one.device}, {one.backend}": _flat(one.facts) for one in facts.bench},
        hashes=_hashes(facts),
        checksums=facts.checksums,
        recipe=json.dumps(facts.recipe, indent=1, ensure_ascii=False),
        licence=facts.data.get("licence", ""),
    )
    return clean(rendered)


def _flat(facts: Any) -> dict[str, str]:
    return {str(key): value if isinstance(value, str) else json.dumps(plain(value)) for key, value in facts.items()}


def _hashes(facts: Facts) -> list[tuple[str, str]]:
    """Every file that a finished step entered in the manifest, with its sha256."""
    return [(name, str(sha256)) for step in facts.steps.values() for name, sha256 in step.get("outputs", {}).items()]


def _name(facts: Facts, label: int) -> str:
    return facts.classes[label] if 0 <= label < len(facts.classes) else f"class {label}"


def _mistakes(facts: Facts) -> list[tuple[str, tuple[str, ...]]]:
    """(data URI, lines under it) of the most confident wrong answers on the test images."""
    found = artifacts.MISTAKES.find(facts.run)
    columns = (found["images"], found["labels"], found["predicted"], found["confidence"]) if found else ((),) * 4
    return [
        (
            plots.jpeg(image),
            (f"said {_name(facts, int(said))}", f"{100 * float(sure):.0f} % sure", f"is {_name(facts, int(true))}"),
        )
        for image, true, said, sure in zip(*columns, strict=True)
    ]


def _partings(facts: Facts) -> list[tuple[str, tuple[str, ...]]]:
    """(data URI, lines under it) of the images on which int8 parts from torch."""
    found = artifacts.DISAGREEMENTS.find(facts.run)
    names = ("images", "labels", "torch", "int8", "artefact")
    columns = [found[name] for name in names] if found else [()] * len(names)
    return [
        (
            plots.jpeg(image),
            (
                f"torch {_name(facts, int(ours))}",
                f"{which} {_name(facts, int(theirs))}",
                f"is {_name(facts, int(true))}",
            ),
        )
        for image, true, ours, theirs, which in zip(*columns, strict=True)
    ]


def write(run: Run) -> list[Path]:
    """Write report.json and report.html into the run directory, each atomically, and return their paths.

    Raises:
        InputError: a file of the run is broken.
    """
    facts = read(run)
    page_html, content = _html(facts), _collect(facts)
    artifacts.REPORT_JSON.write(run, content)
    with atomic(artifacts.REPORT_HTML.at(run)) as temporary:
        temporary.write_text(page_html, encoding="utf-8")
    return [artifacts.REPORT_JSON.at(run), artifacts.REPORT_HTML.at(run)]
