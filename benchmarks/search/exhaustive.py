"""The exhaustive table: every student within the budget, trained briefly as in the search, and in full.

A line has all that a search needs of the student (its score and seconds at each rung and at the end) and the outcome of
choosing it (accuracy on test after the full distillation).
"""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from benchmarks.lines import append, read
from edgedistill import check, session
from edgedistill.console import say
from edgedistill.distill import batches, evaluate, loop
from edgedistill.pipeline import TRAIN
from edgedistill.recipe.file import Document, read_recipe
from edgedistill.records import StudentSpec
from edgedistill.run.directory import run_directory
from edgedistill.run.files import digest
from edgedistill.search.search import name_of, rung_steps
from edgedistill.steps import candidate
from edgedistill.steps.context import Context
from edgedistill.steps.step import run_steps
from edgedistill.students import space
from edgedistill.students.build import build_student

SPACE = Path(__file__).parent / "space.yaml"
# labels a class; gtsrb's smallest class has 15 images
LABELS = {"cifar10": 20, "gtsrb": 10, "trash": 20, "neu_steel": 20}


@functools.cache  # a table is made of hundreds of replays of one column
def settings(packs: Path, pack: str, seed: int) -> Document:
    """The recipe of one column of the table."""
    changed = {
        "name": f"space-{pack}",
        "seed": seed,
        "data.path": (packs / pack).resolve(),
        "data.labels_per_class": LABELS[pack],
        "data.reserve": 0,  # the first lines are of students that every unlabeled image trains
    }
    return read_recipe(SPACE, [f"{key}={value}" for key, value in changed.items()])


@functools.lru_cache(maxsize=1)
def context_of(packs: Path, runs: Path, pack: str, seed: int) -> Context:
    """Return the run of one pack and seed, with its sources weighed."""
    document = settings(packs, pack, seed)
    recipe = check.load(document)
    context = Context(recipe=recipe, base=document.base, run=run_directory(recipe, runs))
    context.run.path.mkdir(parents=True, exist_ok=True)
    with FileLock(context.run / ".weigh.lock"):
        if not context.run.up_to_date("weigh", TRAIN[0].key(context)):
            session.prepare(context)
            context.run.save_recipe(recipe, document)
            run_steps(context, TRAIN[:1])
    return context


def train_student(context: Context, spec: StudentSpec) -> dict[str, Any]:
    """Train one student briefly, with its score at every rung, then in full, with its accuracy on test."""
    recipe, rung_scores, rung_seconds = context.recipe, {}, {}
    context.material(spec.input_px)  # resizes the images and computes the teacher's outputs before the clock starts
    started = time.monotonic()

    def record_rung(step: int) -> Any:
        def record(score: float) -> None:
            rung_scores[step], rung_seconds[step] = score, round(time.monotonic() - started, 2)

        return record

    score, facts = candidate.score(
        context, spec, recipe.seed, {step: record_rung(step) for step in rung_steps(recipe.search)}
    )
    assert recipe.distill.steps != "auto", "the recipe names them"
    task = batches.Task(
        spec=spec,
        material=context.material(spec.input_px),
        settings=recipe.distill,
        steps=recipe.distill.steps,
        seed=recipe.seed,
    )
    fitted = loop.fit(build_student(spec, recipe.seed, initialize=True), task)
    assert fitted.val is not None, "a part of the labels is val"
    images_NHWC, labels_N = context.test_images(spec.input_px)
    test = evaluate.score(evaluate.logits(fitted.model, spec, np.asarray(images_NHWC), batch=256), labels_N)
    return {
        "student": name_of(spec),
        "macs_m": round(spec.cost.macs_m, 3),
        "value": score,
        **facts,
        "rungs": rung_scores,
        "rung_seconds": rung_seconds,
        "steps": recipe.search.steps,
        "full_steps": task.steps,
        "full_seconds": round(fitted.seconds, 2),
        "full_val": fitted.val.score(recipe.data.score),
        "top1": round(test.top1, 6),
        "balanced_accuracy": round(test.balanced, 6),
        "n_test": test.n,
    }


def config(document: Document) -> str:
    """A hash of all that a line depends on besides pack, seed and student."""
    sections = {name: section for name, section in document.raw.items() if name not in {"name", "seed", "about"}}
    data = {name: setting for name, setting in sections["data"].items() if name != "reserve"}
    return digest({**sections, "data": {**data, "path": ""}})[:16]


def fill(packs: Path, runs: Path, names: list[str], seeds: list[int], processes: int) -> None:
    """Train every student that has no line yet; seeds first, so that a table stopped early has complete columns."""
    finished = {(line["pack"], line["seed"], line["student"], line["config"]) for line in read("search-table")}
    jobs = []
    for seed in seeds:
        for pack in names:
            config_hash, context = config(settings(packs, pack, seed)), context_of(packs, runs, pack, seed)
            specs = space.feasible(context.candidates, context.recipe.student.budget)
            jobs += [
                (packs, runs, pack, seed, spec, config_hash)
                for spec in specs
                if (pack, seed, name_of(spec), config_hash) not in finished
            ]
    say(f"{len(jobs)} students to train")
    with multiprocessing.get_context("spawn").Pool(processes, initializer=use_one_thread) as pool:
        for line in pool.imap_unordered(train_job, jobs):
            append("search-table", line)  # only this process writes
            say(f"{line['pack']} seed {line['seed']} {line['student']}: {line['top1']:.3f}, {line['full_seconds']} s")


def agree(packs: Path, runs: Path, names: list[str], seeds: list[int], processes: int) -> None:
    """Train every student of the table briefly again, for its agreement with the teacher, which old lines lack."""
    finished = {_key(line) for line in read("search-agreement")}
    trained = {_key(line): line["value"] for line in read("search-table")}
    jobs = []
    for pack, seed in itertools.product(names, seeds):
        config_hash, context = config(settings(packs, pack, seed)), context_of(packs, runs, pack, seed)
        for spec in space.feasible(context.candidates, context.recipe.student.budget):
            key = (pack, seed, name_of(spec), config_hash)
            if key in trained and key not in finished:
                jobs.append((packs, runs, pack, seed, spec, config_hash))
    say(f"{len(jobs)} students to train briefly")
    with multiprocessing.get_context("spawn").Pool(processes, initializer=use_one_thread) as pool:
        for line in pool.imap_unordered(agree_job, jobs):
            append("search-agreement", {**line, "first_value": trained[_key(line)]})
            say(f"{line['pack']} seed {line['seed']} {line['student']}: {line['agreement']:.3f}")


def _key(line: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(line[name] for name in ("pack", "seed", "student", "config"))


def agree_job(job: tuple[Path, Path, str, int, StudentSpec, str]) -> dict[str, Any]:
    """Train the student of a job briefly; its score, and its agreement with the teacher at rungs and at the end."""
    packs, runs, pack, seed, spec, config_hash = job
    context, rungs = context_of(packs, runs, pack, seed), dict[int, float]()
    steps = {step: functools.partial(rungs.__setitem__, step) for step in rung_steps(context.recipe.search)}
    value, facts = candidate.score(context, spec, context.recipe.seed, steps)
    return {
        "pack": pack,
        "seed": seed,
        "config": config_hash,
        "student": name_of(spec),
        "value": value,
        "loss": facts["loss"],
        "agreement": facts["agreement"],
        "agreement_error": facts["agreement_error"],
        "agreement_rungs": rungs,
    }


def use_one_thread() -> None:
    """Limit torch to one thread, which the seconds of a line refer to."""
    import torch

    torch.set_num_threads(1)


def train_job(job: tuple[Path, Path, str, int, StudentSpec, str]) -> dict[str, Any]:
    """Train the student of a job (packs, runs, pack, seed, spec, hash of the configuration) and return its line."""
    packs, runs, pack, seed, spec, config_hash = job
    return {
        "pack": pack,
        "seed": seed,
        "config": config_hash,
        **train_student(context_of(packs, runs, pack, seed), spec),
    }
