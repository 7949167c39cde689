"""The results of `make demo` as a committed line, and the tables of README.md that are made from it.

python -m benchmarks.quickstart runs/latest       after `make demo`: append its results
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks.lines import append
from edgedistill.report import render
from edgedistill.run.directory import find_run
from edgedistill.run.files import read_json


def record(path: Path) -> Path:
    """Append the measurements of a finished run; return its path."""
    run = find_run(path)
    content, manifest = render.collect(run), run.manifest()
    seconds = {name: entry["seconds"] for name, entry in manifest["steps"].items()}
    memory = max(entry["peak_memory_mb"] for entry in manifest["steps"].values())
    line = {name: content[name] for name in ("sources", "student", "models", "ladder", "bench", "data")}
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
            f"The steps took {minutes:.1f} minutes and {line['peak_memory_mb'] / 1000:.1f} GB of memory on "
            f"{line['cores']} cores ({line['cpu']}), commit {line['commit'] or 'unknown'}. "
            "The intervals are 95 % ones.",
        ]
    )


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


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(record(Path(sys.argv[1])))
