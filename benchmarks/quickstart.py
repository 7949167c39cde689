"""The result of `make demo` as a committed line, and the table that README.md shows of it.

python -m benchmarks.quickstart runs/latest       after `make demo`: append its result
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
    """Append what a finished run measured."""
    found = find_run(path)
    content, manifest = render.collect(found), found.manifest()
    seconds = {name: entry["seconds"] for name, entry in manifest["steps"].items()}
    memory = max(entry["peak_memory_mb"] for entry in manifest["steps"].values())
    kept = {name: content[name] for name in ("sources", "student", "models", "ladder", "bench", "data")}
    raw = {path.name: read_json(path)["latency"]["samples_ms"] for path in sorted((found / "bench").rglob("*.json"))}
    for one in kept["bench"]:
        one["facts"] = {
            name: fact for name, fact in one["facts"].items() if name in {"cpu", "cpus", "machine", "threads"}
        }
    kept["teacher"] = (content["result"] or {}).get("teacher")
    samples = {name: [round(one, 4) for one in samples_ms] for name, samples_ms in raw.items()}
    return append("quickstart", {**kept, "samples_ms": samples, "seconds": seconds, "peak_memory_mb": memory})


def table(line: dict[str, Any]) -> str:
    """The README's tables of one line, in Markdown: the sources, the artefacts, and what it took."""
    sources = sorted(line["sources"]["sources"], key=lambda one: -one["weight"])
    spec, data, score = line["student"], line["data"], line["data"]["score"]
    rungs = [one for one in line["ladder"]["rungs"] if one["artefact"] in {"fp32", "int8-cpu", "int8-tensorrt"}]
    minutes = sum(line["seconds"].values()) / 60
    return "\n".join(
        [
            "| source | what a linear head learns from it (`probe`) | PARC | weight by `probe` "
            "| share in the teacher |",
            "|---|---|---|---|---|",
            *(
                f"| {one['name']} | {_score(one, 'probe', 2)} | {_score(one, 'parc', 1)} | {one['weight']:.2f} | "
                f"{_share(line, one['name'])} |"
                for one in sources
            ),
            "",
            f"The student: {spec['family']} at {spec['input_px']} px, {spec['cost']['macs_m']:.0f} M MACs, "
            f"{spec['cost']['params_m']:.1f} M parameters.",
            "",
            f"| artefact | {'balanced accuracy' if score == 'balanced' else 'top-1'} on {data['test']} test images | "
            "latency p50 (min-max) | times as fast as fp32 | MB |",
            "|---|---|---|---|---|",
            *(_row(one, line) for one in rungs),
            "",
            f"The steps took {minutes:.1f} minutes and {line['peak_memory_mb'] / 1000:.1f} GB of memory on "
            f"{line['cores']} cores ({line['cpu']}), commit {line['commit'] or 'unknown'}. "
            "The intervals are 95 % ones.",
        ]
    )


def _share(line: dict[str, Any], source: str) -> str:
    """Of a source in the teacher; a method without a teacher has none."""
    teacher = line.get("teacher")
    return f"{teacher['weights'].get(source, 0.0):.2f}" if teacher else "-"


def _score(source: dict[str, Any], metric: str, places: int) -> str:
    one = source["scores"][metric]
    return f"{one['score']:.{places}f} [{one['low']:.{places}f}, {one['high']:.{places}f}]"


def _row(rung: dict[str, Any], line: dict[str, Any]) -> str:
    score = line["data"]["score"]
    low, high = rung["accuracy"][f"{score}_ci95"]
    accuracy = f"{100 * rung['accuracy'][score]:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
    size = next((f"{one['size_mb']:.1f}" for one in line["models"] if one["sha256"] == rung["sha256"]), "-")
    measured = next((one for one in line["bench"] if one["sha256"] == rung["sha256"]), None)
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
