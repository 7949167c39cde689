"""int8 beside the peers: ours, ONNX Runtime's, NNCF's and ModelOpt's, from the same fp32 graphs and images.

    python -m benchmarks.quantize students --packs DIR [--students NAME ...]
    python -m benchmarks.quantize run --packs DIR [--students NAME ...] [--peers NAME ...] [--fast]
    python -m benchmarks.quantize qat --packs DIR [--students NAME ...] [--steps 120]
    python -m benchmarks.quantize alike --packs DIR [--students NAME ...]
    python -m benchmarks.quantize distilled --packs DIR [--seeds 0 1] [--minutes M]
    python -m benchmarks.quantize whole --packs DIR
    python -m benchmarks.quantize table

`students` makes the fp32 graphs. `run` lets everyone quantize them, scores every model on the same test images, times
them in turn, and appends one line a model; a peer that fails has a line that says why. `--fast` shows within minutes
whether everything works: few images, few queries, no line. `qat` (tuned.py), `alike`, `distilled` and `whole` answer
questions of their own, which their modules state.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lines import append, read, to_the_end
from benchmarks.quantize import interleave, ours, score, students, table
from benchmarks.quantize.environments import PEERS, Artefact, PeerError, make
from edgedistill.console import say
from edgedistill.recipe.schema import Quantize

FAST, FAST_IMAGES = interleave.Plan(processes=1, rounds=1, queries=5, warm=0.2), 40
SHOWN = ("artefact", "failed", "untimed", "build_seconds", "runtime", "placement", "facts")
Failed = dict[str, str]  # why, by artefact


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantize", description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("students", "run", "qat", "alike", "distilled", "whole"):
        one = verbs.add_parser(verb)
        one.add_argument("--packs", type=Path, required=True, help="directory of packs: NAME/train.parquet")
        one.add_argument("--runs", type=Path, default=Path("runs/quantize"), help="where students and models are kept")
        one.add_argument("--bank", type=Path, default=Path("runs/bank"), help="where the suite keeps its sources")
        one.add_argument("--students", nargs="+", choices=students.STUDENTS, default=list(students.STUDENTS))
    running = verbs.choices["run"]
    running.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    verbs.choices["qat"].add_argument("--steps", type=int, default=120, help="of training in int8 arithmetic")
    verbs.choices["qat"].add_argument("--method", default="auto", help="the calibration before it")
    verbs.choices["distilled"].add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    verbs.choices["distilled"].add_argument("--minutes", type=float, default=float("inf"))
    running.add_argument("--fast", action="store_true", help="a smoke run: few images and queries, no line")
    verbs.add_parser("table")
    return parser.parse_args(given)


def built(folder: Path, out: Path, environments: Path, peers: Sequence[str]) -> tuple[list[Artefact], Failed]:
    """Everyone's models of a student, fp32 first, and who failed."""
    version = {"onnxruntime": metadata.version("onnxruntime")}
    artefacts, failed = (
        [Artefact(name="fp32", path=folder / "student.fp32.onnx", precision="fp32", versions=version)],
        {},
    )
    artefacts += _ours(folder, out, version)
    for name in peers:
        say(f"  {name} ...")
        try:
            artefacts.append(made := make(name, folder, out, environments))
            say(f"  {name}: {made.seconds:.0f} s")
        except PeerError as error:
            failed[name] = str(error)
            say(f"  {name} failed: {error}")
    return artefacts, failed


def _ours(folder: Path, out: Path, version: dict[str, str]) -> list[Artefact]:
    started = time.monotonic()
    made = ours.make(folder, out)
    seconds = round(time.monotonic() - started, 2)
    return [
        Artefact(
            name=name,
            path=path,
            precision=precision,
            simulate=simulate,
            ours=True,
            seconds=facts.get("seconds", seconds),
            versions=version,
            facts=facts,
        )
        for name, path, precision, simulate, facts in made
    ]


def scores(
    artefacts: Sequence[Artefact], folder: Path, out: Path, first: int | None, failed: Failed
) -> dict[str, dict[str, Any]]:
    """What is said of each model that answers; who does not is entered into `failed`."""
    labels_N, images = np.load(folder / "test_labels.npy")[:first], folder / "test.npy"
    found: dict[str, dict[str, Any]] = {}
    reference_NC = None
    for one in artefacts:
        try:
            logits_NC, runtime = interleave.predicted(one, images, out / f"{one.name}.logits.npy", first)
        except PeerError as error:
            if reference_NC is None:
                raise  # without fp32 there is nothing to compare with
            failed[one.name] = str(error)
            say(f"  {one.name} failed: {error}")
            continue
        reference_NC = logits_NC if reference_NC is None else reference_NC
        found[one.name] = {**score.scored(logits_NC, reference_NC, labels_N), "runtime": runtime}
        say(f"  {one.name}: {found[one.name]['top1']:.1%} of {len(labels_N)} images")
    mine = next((one.name for one in artefacts if one.ours and not one.simulate and one.name in found), None)
    if mine is not None:
        ours_N, *others = (np.load(out / f"{name}.logits.npy").argmax(1) for name in (mine, *found))
        for name, theirs_N in zip(found, others, strict=True):
            found[name]["against_ours_points"] = score.drop(theirs_N, ours_N, labels_N)
    return found


def compared(student: str, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """The lines of one student, one an artefact."""
    folder = students.prepare(student, asked.packs, asked.runs, asked.bank)
    (out := folder / "artefacts").mkdir(exist_ok=True)
    say(f"{student}")
    artefacts, failed = built(folder, out, asked.runs / "environments", asked.peers)
    known = scores(artefacts, folder, out=out, first=FAST_IMAGES if asked.fast else None, failed=failed)
    load = os.getloadavg()[0]  # one worker predicted until now: about 1 on a machine with nothing else to do
    plan = FAST if asked.fast else interleave.Plan()
    samples, untimed = interleave.timed([one for one in artefacts if one.name in known], folder / "test.npy", plan)
    lines = []
    for one in (one for one in artefacts if one.name in known):
        mine = samples.get(one.name)
        timing: dict[str, Any] = {"samples_ms": mine, "ratio_to_fp32": None, "untimed": untimed.get(one.name)}
        if mine and one.name != "fp32" and "fp32" in samples:
            timing["ratio_to_fp32"] = interleave.ratio(samples["fp32"], mine)
        line = {"student": student, **_said(one), **known[one.name], **timing, "load": round(load, 2)}
        lines.append(_decided(line) if one.ours and not one.simulate else line)
    return [*lines, *({"student": student, "artefact": name, "failed": why} for name, why in failed.items())]


def _decided(line: dict[str, Any]) -> dict[str, Any]:
    """Whether the product's two guards keep the graph, entered into its facts."""
    ratio, holds = line["ratio_to_fp32"], line["facts"]["holds"]
    fast = ratio is None or ratio[1] > Quantize().min_speedup
    return {**line, "facts": {**line["facts"], "kept": holds is not False and fast}}


def _said(one: Artefact) -> dict[str, Any]:
    return {
        "artefact": one.name,
        "ours": one.ours,
        "versions": dict(one.versions),
        "precision": one.precision,
        "simulated": one.simulate,
        "size_mb": score.size_mb(one.path),
        "build_seconds": one.seconds,
        "placement": score.placement(one.path),
        "facts": dict(one.facts),
    }


def run(asked: argparse.Namespace) -> None:
    """Every student; a line is written when its student is done, so that a run that is stopped keeps the others."""
    for student in asked.students:
        lines = compared(student, asked)
        for line in lines:
            if asked.fast:
                say(f"  { ({name: line[name] for name in SHOWN if name in line}) }")
            else:
                append("quantize", line)
        say(table.markdown(lines))


def main(given: list[str] | None = None) -> int:
    """Run a verb; returns the exit status."""
    asked = arguments(given)
    if asked.verb == "table":
        print(table.markdown(list(read("quantize"))))
    else:
        VERBS[asked.verb](asked)
    return 0


def _students(asked: argparse.Namespace) -> None:
    for student in asked.students:
        students.prepare(student, asked.packs, asked.runs, asked.bank)


def _qat(asked: argparse.Namespace) -> None:
    from benchmarks.quantize import tuned

    for student in asked.students:
        if student in students.TRAINED:
            tuned.run(student, asked.packs, runs=asked.runs, bank=asked.bank, steps=asked.steps, method=asked.method)


def _alike(asked: argparse.Namespace) -> None:
    from benchmarks.quantize import alike

    for student in asked.students:
        alike.run(student, asked.packs, asked.runs, asked.bank)


def _distilled(asked: argparse.Namespace) -> None:
    from benchmarks.quantize import distilled

    bank = distilled.bank_of(asked.packs, asked.bank)
    distilled.run(bank, bank.profile.targets, asked.seeds, asked.minutes)


def _whole(asked: argparse.Namespace) -> None:
    from benchmarks.quantize import whole

    whole.run(asked.packs, asked.runs)


VERBS = {"run": run, "students": _students, "qat": _qat, "alike": _alike, "distilled": _distilled, "whole": _whole}


if __name__ == "__main__":
    to_the_end(main)
