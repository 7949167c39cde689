"""The agent's meter compared with mlcommons-loadgen and trtexec: the same graph, runtime and machine, in turn.

    python -m benchmarks.meter run [--model FILE.onnx ...] [--rounds 12] [--samples 500] [--seconds 4] [--fast]
    python -m benchmarks.meter table

`run` appends a line a graph and scenario: the readings of both sides in every round, their ratio, and whether it is
within 5 %. On a CPU both sides are fresh processes of one environment, in turn; loadgen drives the agent's own backend.
Images a second are compared in batches. trtexec is measured where it is installed. `--fast` is a smoke test of a
minute and appends nothing. No figure here is an MLPerf result: loadgen is used as a meter, not by MLPerf's rules.
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

from benchmarks.lines import append, read, run_program
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


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.meter", description=(__doc__ or "").splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    run_command = verbs.add_parser("run")
    run_command.add_argument("--model", type=Path, nargs="+", default=[], help="graphs that edgedistill exported")
    run_command.add_argument("--rounds", type=int, default=Plan.rounds)
    run_command.add_argument("--samples", type=int, default=Plan.samples, help="minimum, of each side in each round")
    run_command.add_argument("--seconds", type=float, default=Plan.seconds, help="minimum, of each side in each round")
    run_command.add_argument(
        "--batch", type=int, default=Plan.batch, help="images of a query where the rate is compared"
    )
    run_command.add_argument(
        "--runs", type=Path, default=Path("runs/meter"), help="directory of graphs and environments"
    )
    run_command.add_argument("--fast", action="store_true", help="a smoke run: few rounds and queries, no line")
    verbs.add_parser("table")
    return parser.parse_args(argv)


def beside_loadgen(graph: Graph, plan: Plan, built: Built) -> Iterator[Line]:
    """Compare the agent with mlcommons-loadgen; yields a line a scenario."""
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
    """Compare the agent with trtexec; yields a line a mode, or one with the reason where either cannot run."""
    path, identity = trtexec.program(), {"graph": graph.name, "peer": "trtexec"}
    if path is None:
        yield {**identity, "absent": "not here: no program is called trtexec"}
        return
    cache = runs / "cache" / graph.model.sha256[:12]
    trtexec.use_cache(cache)
    tensorrt = partial(readings.agent, graph, plan, Path(sys.executable), backend="tensorrt")
    try:
        version = trtexec.installed_version(path)
        ours = tensorrt(mode="compute")["version"]  # builds the engine, too
        agent_engine = trtexec.agent_engine(cache) if ours.startswith(version) else None
        measure = partial(
            trtexec.reading, path, version, graph=graph, engine=agent_engine or cache / "trtexec.engine", plan=plan
        )
        for mode, (_, _, judged) in trtexec.MODES.items():
            facts = {"judged": judged, "engine": "the agent's" if agent_engine else "each its own"}
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
        yield {**identity, "absent": f"not measured: {error}"}


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
        "compared": compare.compare(cells),
        "rounds": cells,
        "machine": machine.identity(),
        "before": before,
        "after": machine.state(),
    }


def run(options: argparse.Namespace) -> int:
    """Measure every graph; each line is written as soon as it is complete."""
    plan = (
        FAST
        if options.fast
        else Plan(rounds=options.rounds, samples=options.samples, seconds=options.seconds, batch=options.batch)
    )
    options.runs.mkdir(parents=True, exist_ok=True)
    built = environment("loadgen", options.runs / "environments")
    selected = [graphs.from_file(path, options.runs) for path in options.model] or graphs.students(options.runs)
    lines: list[Line] = []
    for graph in selected:
        for line in chain(beside_loadgen(graph, plan, built), beside_trtexec(graph, plan, options.runs)):
            lines.append(line)
            say(json.dumps({name: line[name] for name in ("graph", "scenario", "absent", "compared") if name in line}))
            if not options.fast:
                append(table.KIND, line)
    say(table.markdown(lines))
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run a verb; returns the exit status."""
    options = arguments(argv)
    if options.verb == "table":
        print(table.markdown(list(read(table.KIND))))
        return 0
    try:
        return run(options)
    except PeerError as error:
        raise EdgeDistillError(f"mlcommons-loadgen: {error}") from None


if __name__ == "__main__":
    run_program(main)
