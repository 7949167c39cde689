"""The agent's meter beside mlcommons-loadgen and, where it is, trtexec: the same graph, runtime and machine, in turn.

    python -m benchmarks.meter run [--model FILE.onnx ...] [--rounds 12] [--samples 500] [--seconds 4] [--fast]
    python -m benchmarks.meter table

`run` appends a line a graph and scenario: what both sides read in every round, how far apart that is, and whether it is
within 5 %. On a CPU both sides are fresh processes of one environment, in turn; loadgen drives the agent's own backend.
Images a second are compared in batches. `--fast` shows within a minute whether everything works, and appends nothing.
No figure of this is an MLPerf result: loadgen is used as a meter, by none of MLPerf's rules.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.lines import append, read, to_the_end
from benchmarks.meter import compare, graphs, readings, table, trtexec
from benchmarks.meter.compare import Plan, Reading
from benchmarks.meter.graphs import Graph
from benchmarks.quantize.environments import Built, PeerError, environment
from edgedistill.agent import machine
from edgedistill.console import say
from edgedistill.errors import EdgeDistillError

FAST = Plan(rounds=2, samples=30, seconds=0.2)
SCENARIOS = {"SingleStream": "host-to-host", "Offline": "offline"}
Line = dict[str, Any]


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.meter", description=(__doc__ or "").splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    running = verbs.add_parser("run")
    running.add_argument("--model", type=Path, nargs="+", default=[], help="graphs that edgedistill exported")
    running.add_argument("--rounds", type=int, default=Plan.rounds)
    running.add_argument("--samples", type=int, default=Plan.samples, help="at least, of each side in each round")
    running.add_argument("--seconds", type=float, default=Plan.seconds, help="at least, of each side in each round")
    running.add_argument("--batch", type=int, default=Plan.batch, help="images of a query where the rate is compared")
    running.add_argument("--runs", type=Path, default=Path("runs/meter"), help="where graphs and environments are kept")
    running.add_argument("--fast", action="store_true", help="a smoke run: few rounds and queries, no line")
    verbs.add_parser("table")
    return parser.parse_args(given)


def beside_loadgen(graph: Graph, plan: Plan, built: Built) -> Iterator[Line]:
    """A line a scenario."""
    for scenario, mode in SCENARIOS.items():
        ours = partial(readings.agent, graph, plan, built.python, mode=mode)
        theirs = partial(readings.loadgen, graph, plan, built.python, scenario=scenario)
        yield _line(
            graph,
            plan,
            peer="mlcommons-loadgen",
            versions=dict(built.versions),
            scenario=scenario,
            ours=ours,
            theirs=theirs,
        )


def beside_trtexec(graph: Graph, plan: Plan, runs: Path) -> Iterator[Line]:
    """A line a mode; one that says why where trtexec or the agent's TensorRT is not here."""
    path, about = trtexec.program(), {"graph": graph.name, "peer": "trtexec"}
    if path is None:
        yield {**about, "absent": "not here: no program is called trtexec"}
        return
    cache = runs / "cache" / graph.model.sha256[:12]
    trtexec.use(cache)
    tensorrt = partial(readings.agent, graph, plan, Path(sys.executable), backend="tensorrt")
    try:
        version = trtexec.installed(path)
        ours = tensorrt(mode="compute")["version"]  # builds the engine, too
        same = trtexec.kept(cache) if ours.startswith(version) else None
        measure = partial(
            trtexec.reading, path, version, graph=graph, engine=same or cache / "trtexec.engine", plan=plan
        )
        for mode, (_, _, judged) in trtexec.MODES.items():
            facts = {"judged": judged, "engine": "the agent's" if same else "each its own"}
            versions = {"trtexec": version, "tensorrt": ours}
            line = _line(
                graph,
                plan,
                peer="trtexec",
                versions=versions,
                scenario=mode,
                ours=partial(tensorrt, mode=mode),
                theirs=partial(measure, mode=mode),
            )
            yield {**line, **facts}
    except (EdgeDistillError, PeerError) as error:
        yield {**about, "absent": f"not measured: {error}"}


def _line(graph: Graph, plan: Plan, peer: str, versions: dict[str, str], scenario: str, ours: Any, theirs: Any) -> Line:
    before = machine.state()
    cells: list[dict[str, Reading]] = compare.rounds(ours, theirs, plan.rounds, f"{graph.name}, {scenario}")
    facts = {"graph": graph.name, "sha256": graph.model.sha256, "precision": graph.model.precision, "px": graph.px}
    return {
        **facts,
        "peer": peer,
        "versions": versions,
        "scenario": scenario,
        "plan": vars(plan),
        "judged": True,
        "compared": compare.compared(cells),
        "rounds": cells,
        "machine": machine.identity(),
        "before": before,
        "after": machine.state(),
    }


def run(asked: argparse.Namespace) -> int:
    """Every graph; a line is written as soon as it is known."""
    plan = (
        FAST
        if asked.fast
        else Plan(rounds=asked.rounds, samples=asked.samples, seconds=asked.seconds, batch=asked.batch)
    )
    asked.runs.mkdir(parents=True, exist_ok=True)
    built = environment("loadgen", asked.runs / "environments")
    chosen = [graphs.given(path, asked.runs) for path in asked.model] or graphs.students(asked.runs)
    lines: list[Line] = []
    for graph in chosen:
        for line in chain(beside_loadgen(graph, plan, built), beside_trtexec(graph, plan, asked.runs)):
            lines.append(line)
            say(json.dumps({name: line[name] for name in ("graph", "scenario", "absent", "compared") if name in line}))
            if not asked.fast:
                append(table.KIND, line)
    say(table.markdown(lines))
    return 0


def main(given: list[str] | None = None) -> int:
    """Run a verb; returns the exit status."""
    asked = arguments(given)
    if asked.verb == "table":
        print(table.markdown(list(read(table.KIND))))
        return 0
    try:
        return run(asked)
    except PeerError as error:
        raise EdgeDistillError(f"mlcommons-loadgen: {error}") from None


if __name__ == "__main__":
    to_the_end(main)
