"""The results of `make demo` as committed lines, and the tables of README.md that are made from them.

python -m benchmarks.quickstart runs/latest [NOTE]    after `make demo`: append its results, with a note below the table
python -m benchmarks.quickstart draws SEED...         train with other draws of the labels: is the gain a lucky seed?

What is finished is not repeated: a killed `draws` goes on from there.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.lines import append, read, run_program
from edgedistill import check, session
from edgedistill.errors import InputError
from edgedistill.recipe.file import Document, read_recipe
from edgedistill.recipe.schema import SECTIONS_TO_DISTILL, Recipe
from edgedistill.report import render
from edgedistill.run.directory import find_run, run_directory
from edgedistill.run.files import digest, read_json

RECIPE = Path(__file__).parent.parent / "recipes/quickstart.yaml"
DRAWS = "quickstart-draws"


def load(*overrides: str) -> tuple[Document, Recipe, str]:
    """The quickstart's recipe, and a hash of what its training depends on, but for the seed."""
    document = read_recipe(RECIPE, overrides)
    recipe = check.load(document)
    return document, recipe, digest(recipe.sections(name for name in SECTIONS_TO_DISTILL if name != "seed"))


def train_draws(seeds: Sequence[int], root: Path = Path("runs")) -> None:
    """Train the quickstart with each seed and append what distilling bought, unless there is such a line."""
    for seed in seeds:
        document, recipe, config = load(f"seed={seed}")
        key = {"seed": seed, "config": config}
        if any(line.items() >= key.items() for line in read(DRAWS)):
            continue
        content = render.collect(session.train(document, recipe, root).run)
        append(DRAWS, {**key, **{name: content[name] for name in ("baseline", "student", "score")}})


def record(path: Path, note: str = "") -> Path:
    """Append the measurements of a finished run, with a note on how it was measured; return the file's path.

    Raises:
        InputError: the run is not one of the quickstart's recipe as it stands.
    """
    run, (_, recipe, config) = find_run(path), load()
    if run.path.name != run_directory(recipe, run.path.parent).path.name:
        raise InputError(f"{path}: is not a run of {RECIPE.name} as it stands", "run `make demo`")
    content, manifest = render.collect(run), run.manifest()
    seconds = {name: entry["seconds"] for name, entry in manifest["steps"].items()}
    memory = max(entry["peak_memory_mb"] for entry in manifest["steps"].values())
    line = {name: content[name] for name in ("sources", "student", "models", "ladder", "bench", "data", "baseline")}
    line |= {"note": note, "config": config}
    raw = {path.name: read_json(path)["latency"]["samples_ms"] for path in sorted((run / "bench").rglob("*.json"))}
    for report in line["bench"]:
        report["facts"] = {
            name: fact for name, fact in report["facts"].items() if name in {"cpu", "cpus", "machine", "threads"}
        }
    line["teacher"] = (content["result"] or {}).get("teacher")
    samples_ms = {name: [round(sample_ms, 4) for sample_ms in raw_ms] for name, raw_ms in raw.items()}
    return append("quickstart", {**line, "samples_ms": samples_ms, "seconds": seconds, "peak_memory_mb": memory})


def table(line: dict[str, Any]) -> str:
    """The tables of one line, in Markdown: the sources, the graphs, and the time and memory."""
    sources = sorted(line["sources"]["sources"], key=lambda source: -source["weight"])
    spec = line["student"]
    return "\n".join(
        [
            "| source | what a linear head learns from it (`probe`) | PARC | weight by `probe` "
            "| share in the teacher |",
            "|---|---|---|---|---|",
            *(
                f"| {source['name']} | {_score(source, 'probe', 2)} | {_score(source, 'parc', 1)} | "
                f"{source['weight']:.2f} | {_share(line, source['name'])} |"
                for source in sources
            ),
            "",
            f"The student: {spec['family']} at {spec['input_px']} px, {spec['cost']['macs_m']:.0f} M MACs, "
            f"{spec['cost']['params_m']:.1f} M parameters.",
            "",
            graphs_table(line),
        ]
    )


def graphs_table(line: dict[str, Any]) -> str:
    """The table of the student's graphs, and the time and memory that the run took."""
    pack, score = line["data"], line["data"]["score"]
    rungs = [rung for rung in line["ladder"]["rungs"] if rung["artefact"] in {"fp32", "int8-cpu", "int8-tensorrt"}]
    minutes = sum(line["seconds"].values()) / 60
    return "\n".join(
        [
            f"| graph | {'balanced accuracy' if score == 'balanced' else 'top-1'} on {pack['test']} test images | "
            "latency p50 (min-max) | times as fast as fp32 | MB |",
            "|---|---|---|---|---|",
            *(_row(rung, line) for rung in rungs),
            "",
            *bought(line, [draw for draw in read(DRAWS) if draw["config"] == line.get("config")]),
            f"The steps took {minutes:.1f} minutes and {line['peak_memory_mb'] / 1000:.1f} GB of memory on "
            f"{line['cores']} cores ({line['cpu']}), commit {line['commit'] or 'unknown'}. "
            "The intervals are 95 % ones." + (f" {line['note']}" if line.get("note") else ""),
        ]
    )


def bought(line: dict[str, Any], draws: Sequence[dict[str, Any]]) -> list[str]:
    """The table of what distilling bought, and a sentence on other draws of the labels; empty for an older line."""
    record, score = line.get("baseline"), line["data"]["score"]
    if not record:
        return []
    rows = [("the same student on labels alone", record["labels_alone"], record["over_labels_alone"])]
    if record["probe"]:
        rows.append((f"a linear probe of {record['source']}", record["probe"], record["over_probe"]))
    cells = [
        f"| {name} | {100 * accuracy[score]:.1f} % | {gain['points']:+.1f} [{gain['low']:+.1f}, {gain['high']:+.1f}] |"
        for name, accuracy, gain in rows
    ]
    sentences = []
    if draws:
        over_labels, over_probe = (_gains(draws, key) for key in ("over_labels_alone", "over_probe"))
        sentence = f"With {len(draws)} other draws of the labels the gain in points is {over_labels} over labels alone"
        sentences = [sentence + (f", and {over_probe} over the linear probe." if over_probe else "."), ""]
    head = ["| classifier, in torch | accuracy | distilling gains, points |", "|---|---|---|"]
    distilled = f"| the student, distilled | {100 * record['distilled'][score]:.1f} % | - |"
    return [*head, distilled, *cells, "", *sentences]


def _gains(draws: Sequence[dict[str, Any]], key: str) -> str:
    """The mean gain of other draws and each of them, in the order of the seeds; empty where one has none."""
    gains = [draw["baseline"][key] for draw in sorted(draws, key=lambda draw: draw["seed"])]
    if not all(gains):
        return ""
    points = [gain["points"] for gain in gains]
    return f"{statistics.mean(points):+.1f} on average ({', '.join(f'{gain:+.1f}' for gain in points)})"


def _share(line: dict[str, Any], source: str) -> str:
    """A source's weight in the teacher; "-" for a method without a teacher."""
    teacher = line.get("teacher")
    return f"{teacher['weights'].get(source, 0.0):.2f}" if teacher else "-"


def _score(source: dict[str, Any], metric: str, places: int) -> str:
    score = source["scores"][metric]
    return f"{score['score']:.{places}f} [{score['low']:.{places}f}, {score['high']:.{places}f}]"


def _row(rung: dict[str, Any], line: dict[str, Any]) -> str:
    score = line["data"]["score"]
    low, high = rung["accuracy"][f"{score}_ci95"]
    accuracy = f"{100 * rung['accuracy'][score]:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
    size = next((f"{model['size_mb']:.1f}" for model in line["models"] if model["sha256"] == rung["sha256"]), "-")
    measured = next((report for report in line["bench"] if report["sha256"] == rung["sha256"]), None)
    name = rung["artefact"] + (" (simulated)" if rung["simulated"] else "")
    if measured is None:
        return f"| {name} | {accuracy} | not measured here | - | {size} |"
    marks, ratio = measured["latency"]["percentiles_ms"], measured["ratio_to_fp32"]
    faster = f"{ratio[0]:.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}]" if ratio else "1"
    spread = f"{marks['p50']:.2f} ms ({marks['min']:.2f}-{marks['max']:.2f})"
    return f"| {name} | {accuracy} | {spread} | {faster} | {size} |"


def main() -> int:
    """Record a run, or train with other draws of the labels."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["draws"] and arguments[1:]:
        train_draws([int(seed) for seed in arguments[1:]])
    elif len(arguments) in {1, 2}:
        print(record(Path(arguments[0]), *arguments[1:]))
    else:
        sys.exit(__doc__)
    return 0


if __name__ == "__main__":
    run_program(main)
