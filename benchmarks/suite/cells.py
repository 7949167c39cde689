"""One cell of the table: a target, a method and a seed; and the line about a draw's sources."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.suite.draws import Draw, initial_hash, initial_student
from benchmarks.suite.protocol import Knowledge
from edgedistill.distill import batches, evaluate, head_start, loop, methods, peer, teachers
from edgedistill.distill.prior import tell_prior
from edgedistill.distill.probes import Labels, probe
from edgedistill.errors import InputError
from edgedistill.recipe.options import Problem, option_problems
from edgedistill.recipe.schema import Distill
from edgedistill.recipe.section import Choice
from edgedistill.run.files import atomic, digest
from edgedistill.students import space


def train_student(draw: Draw, method: str) -> tuple[loop.TrainedStudent, batches.Task]:
    """Train one student; returns it with its training task."""
    profile, draw = draw.bank.profile, draw.of_row(method)
    settings, knowledge = profile.settings(method, draw.target, draw.seed), profile.knowledge(method)
    material = draw.material(settings, knowledge, profile.weighing(method))
    if settings.peer:
        assert material.teacher_NC is not None, "the method has a teacher"
        alone = peer.on_labels_alone(settings, settings.batch_unlabeled)
        peer_file = _peer_file(draw, alone, knowledge)
        if not peer_file.is_file():
            _fit(draw, alone, draw.material(alone, knowledge), knowledge)
        share = peer_share(draw, method)
        teacher_NC = peer.averaged(material.teacher_NC, np.load(peer_file), share).astype(np.float32)
        material = replace(material, teacher_NC=teacher_NC)
    return _fit(draw, settings, material, knowledge)


def peer_share(draw: Draw, method: str) -> peer.Share:
    """The share of a row's peer: what it and the teacher say of each half of the labels when trained without it."""
    profile = draw.bank.profile
    settings, knowledge = profile.settings(method, draw.target, draw.seed), profile.knowledge(method)
    alone = peer.on_half_the_labels(peer.on_labels_alone(settings, settings.batch_unlabeled))
    rows, labels_L = draw.labeled
    try:
        half_L = draw.halves()
    except InputError:
        return peer.UNJUDGED

    def answers(half: int) -> tuple[np.ndarray, np.ndarray]:
        part, rows_H = draw.without_half(half), rows[half_L == half]
        material = part.material(alone, knowledge)
        fitted, _ = _trained(part, alone, material, knowledge)
        logits_HC = evaluate.logits(fitted.model, draw.spec, material.images_NHWC[rows_H], batch=256)
        return part.teacher(settings.teacher, knowledge, profile.level(method))[rows_H], logits_HC

    labels = Labels(rows=rows, labels_L=labels_L, units_L=draw.splits.units_N[rows], classes=len(draw.splits.classes))
    return peer.judge_by_halves(half_L, labels, answers)


def _fit(
    draw: Draw, settings: Distill, material: batches.Material, knowledge: Knowledge
) -> tuple[loop.TrainedStudent, batches.Task]:
    fitted, task = _trained(draw, settings, material, knowledge)
    if settings.method.name == "transfer" and draw.bank.profile.has_peers:  # it may be the peer of another row
        peer_file = _peer_file(draw, settings, knowledge)
        peer_file.parent.mkdir(parents=True, exist_ok=True)
        with atomic(peer_file) as temporary, temporary.open("wb") as stream:
            np.save(stream, evaluate.logits(fitted.model, draw.spec, material.images_NHWC, batch=256))
    return fitted, task


def _trained(
    draw: Draw, settings: Distill, material: batches.Material, knowledge: Knowledge
) -> tuple[loop.TrainedStudent, batches.Task]:
    task = draw.task(settings, material)
    fitted = loop.fit(initial_student(draw), task)
    tell_prior(
        fitted.model, draw.spec, draw.prior(knowledge), images_NHWC=material.images_NHWC, rows=material.unlabeled
    )
    return fitted, task


def _peer_file(draw: Draw, settings: Distill, knowledge: Knowledge) -> Path:
    """Where the logits of a student on labels alone are kept, of every train image: two rows train the same one."""
    bank = draw.bank
    initial = initial_hash(draw) if bank.profile.initial else ""
    labels = [draw.times * bank.profile.labels(draw.target), bank.profile.labeled, knowledge]
    identity = [bank.pack_hashes(draw.target), draw.seed, labels, settings.for_key(), asdict(draw.spec), initial]
    versions = {"transfer": methods.METHODS["transfer"].version, "head start": head_start.VERSION}
    return bank.runs / "cache/peers" / f"{digest([*identity, versions])}.npy"


def run_cell(draw: Draw, method: str) -> dict[str, Any]:
    """Train one student and score it on test, once; returns the line of the table."""
    profile = draw.bank.profile
    started = time.monotonic()
    fitted, task = train_student(draw, method)
    seconds, settings = time.monotonic() - started, task.settings
    test = draw.splits.open_test()
    logits_NC = evaluate.logits(fitted.model, draw.spec, np.asarray(test.store.resized(draw.spec.input_px)), batch=256)
    score = evaluate.score(logits_NC, test.labels_N)
    views = 2 if "weak" in task.needs else 1
    batch_unlabeled = settings.batch_unlabeled if len(task.unlabeled) else 0
    samples = task.steps * (settings.batch_labeled + views * batch_unlabeled)
    if settings.peer:  # it and its halves, which are half as many steps each
        samples += (task.steps + 2 * max(1, task.steps // 2)) * (settings.batch_labeled + batch_unlabeled)
    return {
        "kind": "run",
        "profile": profile.name,
        "target": draw.target,
        "method": method,
        "seed": draw.seed,
        "labels_per_class": profile.labels(draw.target),
        **({"times_the_labels": profile.times(method)} if profile.times(method) > 1 else {}),
        "student": space.describe(draw.spec),
        **({"initial": initial_hash(draw)} if profile.initial else {}),
        "top1": round(score.top1, 6),
        "balanced_accuracy": round(score.balanced, 6),
        "n_test": score.n,
        "steps": task.steps,
        "samples": samples,
        # a peer may have been trained for another row
        **({} if settings.peer else {"train_seconds": round(seconds, 2)}),
        "pack": digest(draw.bank.pack_hashes(draw.target))[:16],
        "config": profile.config(method),
    }


def rounded(number: float) -> float | None:
    """A number for JSON, which has no infinity: None where it is not finite."""
    return round(number, 6) if np.isfinite(number) else None


def settings_problems(settings: Distill) -> list[Problem]:
    """Problems with options that the function of the method or of the teacher does not accept."""
    method, teacher = settings.method, settings.teacher
    return [
        *option_problems(methods.METHODS[method.name].loss, method.options, (method.name,)),
        *option_problems(teachers.TEACHERS[teacher.name].fit, teacher.options, (teacher.name,)),
    ]


def draw_line(draw: Draw) -> dict[str, Any]:
    """The line about the sources of a draw: scores, weights, accuracies of probes and teachers on the unlabeled images.

    It reads the classes of the unlabeled images, for this line alone, after the weights are computed.
    """
    profile, weights = draw.bank.profile, draw.weights
    rows, labels = draw.labeled
    hidden, truth = draw.splits.unlabeled_rows, draw.bank.truth(draw.target)
    choices = [Choice.model_validate(choice) for choice in profile.teachers.values()]
    classes = len(draw.splits.classes)

    def score_hidden(probs_NC: np.ndarray) -> dict[str, float]:
        accuracies = asdict(evaluate.score(probs_NC[hidden], truth[hidden]))
        return {"top1": round(accuracies["top1"], 6), "balanced_accuracy": round(accuracies["balanced"], 6)}

    probes = {
        name: score_hidden(probe(features, rows, labels, classes).probs_NC) for name, features in draw.features.items()
    }
    return {
        "kind": "draw",
        "profile": profile.name,
        "target": draw.target,
        "seed": draw.seed,
        "labels_per_class": profile.labels(draw.target),
        "n_labeled": len(rows),
        "scores": {
            metric: {source.name: rounded(source.scores[metric].score) for source in weights.sources}
            for metric in weights.sources[0].scores
        },
        "ceilings": {
            metric: rounded(score.ceiling)
            for metric, score in weights.sources[0].scores.items()
            if score.ceiling is not None
        },
        "alphas": {name: round(alpha, 6) for name, alpha in weights.alphas.items()},
        "effective_sources": round(weights.effective_sources, 3),
        "source_probes": probes,
        "teachers": {choice.name: score_hidden(draw.teacher(choice)) for choice in choices},
        "pack": digest(draw.bank.pack_hashes(draw.target))[:16],
        "config": profile.config("draw"),
    }
