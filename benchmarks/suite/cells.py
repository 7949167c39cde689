"""One cell of the table: a target, a method, a seed; and what all methods of a target and a seed share.

The seed fixes the label draw, the initial weights of the head, the order of the images and their augmentation; every
method starts from the same weights. No label beyond the drawn ones is looked at before the last step is done.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from benchmarks.suite.bank import Bank
from edgedistill.data.splits import Splits
from edgedistill.distill import batches, evaluate, loop, methods, teachers
from edgedistill.recipe.options import Problem, option_problems
from edgedistill.recipe.schema import Choice, Distill, Student
from edgedistill.records import SourceWeights, StudentSpec
from edgedistill.run.files import digest
from edgedistill.similarity.weigh import weigh_sources
from edgedistill.students import space
from edgedistill.students.build import build_student
from edgedistill.students.pretrained import read_state


@dataclass(frozen=True, kw_only=True)
class Draw:
    """A target with the labels that one seed draws."""

    bank: Bank
    target: str
    seed: int

    @cached_property
    def splits(self) -> Splits:
        """The pack, divided."""
        return self.bank.splits(self.target, self.seed, self.bank.profile.labels(self.target))

    @cached_property
    def labeled(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows and classes of the labeled images: no part of them is set aside, for nothing is chosen by them."""
        rows = np.concatenate([self.splits.labeled_rows, self.splits.val_rows])
        return rows, np.concatenate([self.splits.labeled_labels, self.splits.val_labels])

    @cached_property
    def spec(self) -> StudentSpec:
        """The profile's student for this target."""
        options = dict(self.bank.profile.student)
        section = Student(families={options.pop("family"): options})
        return space.candidates(section, len(self.splits.classes))[0]

    @cached_property
    def outputs(self) -> dict[str, Any]:
        """Per source, what it says of every train image."""
        return {name: self.bank.outputs(name, self.target) for name in self.bank.names_for(self.target)}

    @cached_property
    def features(self) -> dict[str, np.ndarray]:
        """Per source, its features of every train image, in memory."""
        return {name: np.asarray(one.features_ND) for name, one in self.outputs.items()}

    @cached_property
    def weights(self) -> SourceWeights:
        """Every metric's scores on the labeled images, and the weights."""
        rows, labels = self.labeled
        probe = {
            name: (self.features[name][rows], np.asarray(one.probs_NK)[rows]) for name, one in self.outputs.items()
        }
        return weigh_sources(probe, labels, self.bank.profile.weigh, self.seed)

    def teacher(self, choice: Choice) -> np.ndarray:
        """What the sources' probes say of every train image in the target's classes, float32 [N, C]."""
        found = self.__dict__.setdefault("teachers", {})
        key = choice.model_dump_json()
        if key not in found:
            rows, labels = self.labeled
            made = teachers.TEACHERS[choice.name].fit(
                features=self.features,
                alphas=self.weights.alphas,
                rows=rows,
                labels_L=labels,
                classes=len(self.splits.classes),
                **choice.options,
            )
            found[key] = made.probs_NC.astype(np.float32)
        return np.asarray(found[key])

    def material(self, settings: Distill) -> batches.Material:
        """What a student learns from under these settings; no image is spared for val, the labeled ones stand there."""
        rows, labels = self.labeled
        probs = {name: np.asarray(one.probs_NK) for name, one in self.outputs.items()}
        needs = methods.METHODS[settings.method.name].needs
        return batches.Material(
            images_NHWC=np.asarray(self.splits.train.at(self.spec.input_px)),
            labeled=rows,
            labels=labels,
            unlabeled=self.splits.unlabeled_rows,
            val=rows,
            val_labels=labels,
            source_probs=probs if "sources" in needs else {},
            alphas=self.weights.alphas if "sources" in needs else {},
            teacher_NC=self.teacher(settings.teacher) if "teacher" in needs else None,
        )


def trained(draw: Draw, method: str) -> tuple[loop.Fitted, batches.Task]:
    """One student, and what it was trained by."""
    settings = draw.bank.profile.settings(method, draw.target, draw.seed)
    task = batches.Task(
        spec=draw.spec, material=draw.material(settings), settings=settings, steps=settings.steps, seed=draw.seed
    )
    return loop.fit(initial(draw), task), task


def cell(draw: Draw, method: str) -> dict[str, Any]:
    """Train one student and score it on test, once; the line of the table."""
    profile = draw.bank.profile
    started = time.monotonic()
    fitted, task = trained(draw, method)
    seconds, settings = time.monotonic() - started, task.settings
    test = draw.splits.test()
    logits_NC = evaluate.logits(fitted.model, draw.spec, np.asarray(test.store.at(draw.spec.input_px)), batch=256)
    found = evaluate.score(logits_NC, test.labels_N)
    views = 2 if "weak" in task.needs else 1
    samples = settings.steps * (
        settings.batch_labeled + views * (settings.batch_unlabeled if len(task.unlabeled) else 0)
    )
    return {
        "kind": "run",
        "profile": profile.name,
        "target": draw.target,
        "method": method,
        "seed": draw.seed,
        "labels_per_class": profile.labels(draw.target),
        "student": space.describe(draw.spec),
        "top1": round(found.top1, 6),
        "balanced_accuracy": round(found.balanced, 6),
        "n_test": found.n,
        "steps": settings.steps,
        "samples": samples,
        "train_seconds": round(seconds, 2),
        "pack": digest(draw.bank.pictures(draw.target))[:16],
        "config": profile.config(method),
    }


def rounded(value: float) -> float | None:
    """For JSON, which knows no infinity."""
    return round(value, 6) if np.isfinite(value) else None


def settings_problems(settings: Distill) -> list[Problem]:
    """Options of a method or a teacher that its function does not take."""
    method, teacher = settings.method, settings.teacher
    return [
        *option_problems(methods.METHODS[method.name].loss, method.options, (method.name,)),
        *option_problems(teachers.TEACHERS[teacher.name].fit, teacher.options, (teacher.name,)),
    ]


def initial(draw: Draw) -> Any:
    """The student before its first step: the profile's initial weights under a head drawn by the seed."""
    trained = draw.bank.initial()
    model = build_student(draw.spec, draw.seed, initialise=trained is None)
    if trained:
        state = read_state(trained / "distill/student.safetensors")
        parts = {name.removeprefix("backbone."): one for name, one in state.items() if name.startswith("backbone.")}
        model.backbone.load_state_dict(parts)  # type: ignore[union-attr]
    return model


def draw_line(draw: Draw) -> dict[str, Any]:
    """What the sources are worth on this draw: scores, weights, their probes, and the teachers on the unlabeled images.

    It looks at the classes of the unlabeled images: for this line alone, after the weights are made.
    """
    profile, found = draw.bank.profile, draw.weights
    rows, labels = draw.labeled
    hidden, truth = draw.splits.unlabeled_rows, draw.bank.truth(draw.target)
    kinds = [Choice.model_validate(one) for one in profile.teachers.values()]
    classes = len(draw.splits.classes)

    def judged(probs_NC: np.ndarray) -> dict[str, float]:
        one = asdict(evaluate.score(probs_NC[hidden], truth[hidden]))
        return {"top1": round(one["top1"], 6), "balanced_accuracy": round(one["balanced"], 6)}

    probes = {
        name: judged(teachers.probe(features, rows, labels, classes).probs_NC)
        for name, features in draw.features.items()
    }
    return {
        "kind": "draw",
        "profile": profile.name,
        "target": draw.target,
        "seed": draw.seed,
        "labels_per_class": profile.labels(draw.target),
        "n_labeled": len(rows),
        "scores": {
            metric: {one.name: rounded(one.scores[metric].score) for one in found.sources}
            for metric in found.sources[0].scores
        },
        "ceilings": {
            metric: rounded(one.ceiling) for metric, one in found.sources[0].scores.items() if one.ceiling is not None
        },
        "alphas": {name: round(alpha, 6) for name, alpha in found.alphas.items()},
        "effective_sources": round(found.effective_sources, 3),
        "source_probes": probes,
        "teachers": {one.name: judged(draw.teacher(one)) for one in kinds},
        "pack": digest(draw.bank.pictures(draw.target))[:16],
        "config": profile.config("draw"),
    }
