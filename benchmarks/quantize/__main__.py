"""int8 compared with the peers: ours, ONNX Runtime's, NNCF's and ModelOpt's, from the same fp32 graphs and images.

    python -m benchmarks.quantize run --packs DIR [--students NAME ...] [--peers NAME ...] [--fast]
    python -m benchmarks.quantize students --packs DIR [--cells NAME ...]
    python -m benchmarks.quantize trained --packs DIR [--cells NAME ...]
    python -m benchmarks.quantize qat --packs DIR [--cells NAME ...]
    python -m benchmarks.quantize alike --packs DIR [--students NAME ...]
    python -m benchmarks.quantize kernels --packs DIR [--students NAME ...]
    python -m benchmarks.quantize distilled --packs DIR [--seeds 0 1] [--minutes M]
    python -m benchmarks.quantize whole --packs DIR
    python -m benchmarks.quantize table

`run` quantizes the students (students.py) with this package and with every peer, scores every model on the same test
images, times the models in turn, and appends one line a model; the line of a peer that fails has the reason. `--fast`
is a smoke test of minutes: few images, few queries, no line. `students`, `trained` and `qat` (trained.py), `alike`,
`kernels`, `distilled` and `whole` are measurements of their own, which their modules describe.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lines import append, read, run_program
from benchmarks.quantize import interleave, ours, score, students, table, trained
from benchmarks.quantize.environments import PEERS, Artifact, PeerError, environment, make_model
from edgedistill.console import say
from edgedistill.recipe.schema import Quantize

FAST, FAST_IMAGES = interleave.Plan(processes=1, rounds=1, queries=5, warm=0.2), 40
FAST_FIELDS = ("artefact", "failed", "untimed", "build_seconds", "runtime", "placement", "facts")
OURS, OPENVINO = ours.TARGETS["cpu"], "ours-openvino"
Failed = dict[str, str]  # error messages, by artifact


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantize", description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in VERBS:
        command = verbs.add_parser(verb)
        command.add_argument("--packs", type=Path, required=True, help="directory of packs: NAME/train.parquet")
        command.add_argument(
            "--runs", type=Path, default=Path("runs/quantize"), help="directory of students and models"
        )
    for verb in ("run", "alike"):
        verbs.choices[verb].add_argument("--students", nargs="+", choices=students.STUDENTS, default=students.STUDENTS)
    verbs.choices["kernels"].add_argument(
        "--students", nargs="+", choices=students.STUDENTS, default=("mobilenetv2", "mobilenetv3")
    )
    for verb in ("students", "trained", "qat"):
        verbs.choices[verb].add_argument(
            "--cells", nargs="+", choices=trained.CELLS, help="family-pack; all by default"
        )
    run_command = verbs.choices["run"]
    run_command.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    bank = verbs.choices["distilled"]
    bank.add_argument("--bank", type=Path, default=Path("runs/bank"), help="the suite's directory of sources")
    bank.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    bank.add_argument("--minutes", type=float, default=float("inf"))
    run_command.add_argument("--fast", action="store_true", help="a smoke run: few images and queries, no line")
    verbs.add_parser("table")
    return parser.parse_args(argv)


def build_all(folder: Path, out: Path, environments: Path, peers: Sequence[str]) -> tuple[list[Artifact], Failed]:
    """Make all models of a student; returns them, fp32 first, and the errors of the peers that failed."""
    version = {"onnxruntime": metadata.version("onnxruntime")}
    artifacts, failed = (
        [Artifact(name="fp32", path=folder / "student.fp32.onnx", precision="fp32", versions=version)],
        {},
    )
    artifacts += _ours(folder, out, version)
    try:
        artifacts += in_openvino(artifacts, environments)
    except PeerError as error:
        failed[OPENVINO] = str(error)
    for name in peers:
        say(f"  {name} ...")
        try:
            artifacts.append(artifact := make_model(name, folder, out, environments))
            say(f"  {name}: {artifact.seconds:.0f} s")
        except PeerError as error:
            failed[name] = str(error)
            say(f"  {name} failed: {error}")
    return artifacts, failed


def _ours(folder: Path, out: Path, version: dict[str, str]) -> list[Artifact]:
    started = time.monotonic()
    graphs = ours.make_models(folder, out)
    seconds = round(time.monotonic() - started, 2)
    return [
        Artifact(
            name=name,
            path=path,
            precision=precision,
            simulate=simulate,
            ours=True,
            seconds=facts.get("seconds", seconds),
            versions=version,
            facts=facts,
        )
        for name, path, precision, simulate, facts in graphs
    ]


def in_openvino(artifacts: Sequence[Artifact], environments: Path) -> list[Artifact]:
    """The fp32 graph and our int8 graph for CPUs in OpenVINO, an engine that the product chooses among."""
    built = environment("nncf", environments)
    version = {"openvino": built.versions["openvino"]}
    names = {"fp32": f"{OPENVINO}-reduced", "ours": OPENVINO}
    return [
        replace(
            artifact, name=names[artifact.name], python=built.python, runtime="openvino", ours=True, versions=version
        )
        for artifact in artifacts
        if artifact.name in names
    ]


def score_all(
    artifacts: Sequence[Artifact], folder: Path, out: Path, first: int | None, failed: Failed
) -> dict[str, dict[str, Any]]:
    """Score each model; the error of a model that fails is added to `failed`.

    Raises:
        PeerError: the first model, fp32, fails.
    """
    labels_N, images = np.load(folder / "test_labels.npy")[:first], folder / "test.npy"
    by_name: dict[str, dict[str, Any]] = {}
    predictions: dict[str, np.ndarray] = {}
    reference_NC = None
    for artifact in artifacts:
        try:
            logits_NC, runtime = interleave.predict(artifact, images, out / f"{artifact.name}.logits.npy", first)
        except PeerError as error:
            if reference_NC is None:
                raise  # without fp32 there is nothing to compare with
            failed[artifact.name] = str(error)
            say(f"  {artifact.name} failed: {error}")
            continue
        reference_NC = logits_NC if reference_NC is None else reference_NC
        predictions[artifact.name] = logits_NC.argmax(1)
        by_name[artifact.name] = {**score.model_scores(logits_NC, reference_NC, labels_N), "runtime": runtime}
        say(f"  {artifact.name}: {by_name[artifact.name]['top1']:.1%} of {len(labels_N)} images")
    own_names = [artifact.name for artifact in artifacts if artifact.ours and artifact.name in by_name]
    for name, theirs_N in predictions.items():
        by_name[name]["against"] = {own: score.drop_points(theirs_N, predictions[own], labels_N) for own in own_names}
    return by_name


def measure_student(student: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure one student; returns its lines, one an artifact."""
    folder = students.prepare(student, options.packs, options.runs)
    (out := folder / "artefacts").mkdir(exist_ok=True)
    say(f"{student}")
    artifacts, failed = build_all(folder, out, options.runs / "environments", options.peers)
    by_name = score_all(artifacts, folder, out=out, first=FAST_IMAGES if options.fast else None, failed=failed)
    load_average = os.getloadavg()[0]  # one worker has been predicting: about 1 on a machine that is otherwise idle
    plan = FAST if options.fast else interleave.Plan()
    scored = [artifact for artifact in artifacts if artifact.name in by_name]
    samples, untimed = interleave.time_in_turns(scored, folder / "test.npy", plan)
    lines = []
    for artifact in scored:
        name = artifact.name
        timing: dict[str, Any] = {
            "samples_ms": samples.get(name),
            "ratio_to_fp32": None,
            "untimed": untimed.get(name),
        }
        if samples.get(name) and name != "fp32" and "fp32" in samples:
            timing["ratio_to_fp32"] = interleave.ratio(samples["fp32"], samples[name])
        line = {"student": student, **_build_facts(artifact), **by_name[name], **timing, "load": round(load_average, 2)}
        lines.append(with_decision(line) if artifact.name == OURS else line)
    return [*lines, *({"student": student, "artefact": name, "failed": message} for name, message in failed.items())]


def with_decision(line: dict[str, Any]) -> dict[str, Any]:
    """The line with the decision of the product's two guards, whether to keep the graph, in its facts."""
    ratio, holds = line["ratio_to_fp32"], line["facts"]["holds"]
    fast = ratio is None or ratio[1] > Quantize().min_speedup
    return {**line, "facts": {**line["facts"], "kept": holds is not False and fast}}


def _build_facts(artifact: Artifact) -> dict[str, Any]:
    return {
        "artefact": artifact.name,
        "ours": artifact.ours,
        "versions": dict(artifact.versions),
        "precision": artifact.precision,
        "simulated": artifact.simulate,
        "size_mb": score.size_mb(artifact.path),
        "build_seconds": artifact.seconds,
        "placement": score.placement(artifact.path),
        "facts": dict(artifact.facts),
    }


def run(options: argparse.Namespace) -> None:
    """Measure every student; its lines are written before the next one starts, so that a stopped run keeps them."""
    for student in options.students:
        lines = measure_student(student, options)
        for line in lines:
            if options.fast:
                say(f"  { ({name: line[name] for name in FAST_FIELDS if name in line}) }")
            else:
                append("quantize", line)
        say(table.markdown(lines))


def main(argv: list[str] | None = None) -> int:
    """Run a verb; returns the exit status."""
    options = arguments(argv)
    if options.verb == "table":
        print(table.markdown(list(read("quantize"))))
    else:
        VERBS[options.verb](options)
    return 0


def _students(options: argparse.Namespace) -> None:
    for cell in options.cells or trained.CELLS:
        say(f"{cell}: {trained.train(cell, options.packs, options.runs).accuracy:.1%}")


def _trained(options: argparse.Namespace) -> None:
    trained.measure(options.cells or trained.CELLS, options.packs, options.runs)


def _qat(options: argparse.Namespace) -> None:
    trained.measure_qat(options.cells or (), options.packs, options.runs)


def _alike(options: argparse.Namespace) -> None:
    from benchmarks.quantize import alike

    for student in options.students:
        alike.run(student, options.packs, options.runs)


def _kernels(options: argparse.Namespace) -> None:
    from benchmarks.quantize import kernels

    for student in options.students:
        kernels.run(student, options.runs)


def _distilled(options: argparse.Namespace) -> None:
    from benchmarks.quantize import distilled

    bank = distilled.bank_of(options.packs, options.bank)
    distilled.run(bank, bank.profile.targets, options.seeds, options.minutes)


def _whole(options: argparse.Namespace) -> None:
    from benchmarks.quantize import whole

    whole.run(options.packs, options.runs)


VERBS = {
    "run": run,
    "students": _students,
    "trained": _trained,
    "qat": _qat,
    "alike": _alike,
    "kernels": _kernels,
    "distilled": _distilled,
    "whole": _whole,
}


if __name__ == "__main__":
    run_program(main)
