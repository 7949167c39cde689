"""One cell of the table: a target, a method and a seed; and the draw that all methods of a target and seed share.

The seed fixes the label draw, the initial weights of the head, the order of the images and their augmentation; every
method starts from the same weights. Labels beyond the drawn ones are not read before the last step.
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
from edgedistill.recipe.schema import Distill, Student
from edgedistill.recipe.section import Choice
from edgedistill.records import SourceWeights, StudentSpec
from edgedistill.run.files import digest
from edgedistill.similarity.weigh import weigh_sources
from edgedistill.students import space
from edgedistill.students.build import build_student
from edgedistill.students.checkpoints import read_state


@dataclass(frozen=True, kw_only=True)
class Draw:
    """A target with the label draw of one seed."""

    bank: Bank
    target: str
    seed: int

    @cached_property
    def splits(self) -> Splits:
        """The splits of the target's pack."""
        return self.bank.splits(self.target, self.seed, self.bank.profile.labels(self.target))

    @cached_property
    def labeled(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows and classes of all labeled images; none are reserved for validation, as it would select nothing."""
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
        """Each source's outputs on every train image."""
        return {name: self.bank.outputs(name, self.target) for name in self.bank.sources_for(self.target)}

    @cached_property
    def features(self) -> dict[str, np.ndarray]:
        """Each source's features of every train image, in memory."""
        return {name: np.asarray(source_outputs.features_ND) for name, source_outputs in self.outputs.items()}

    @cached_property
    def weights(self) -> SourceWeights:
        """The scores of every metric on the labeled images, and the source weights."""
        rows, labels = self.labeled
        evidence = {
            name: (self.features[name][rows], np.asarray(source_outputs.probs_NK)[rows])
            for name, source_outputs in self.outputs.items()
        }
        return weigh_sources(evidence, labels, self.bank.profile.weigh, self.seed)

    def teacher(self, choice: Choice) -> np.ndarray:
        """The teacher's probabilities of the target's classes on every train image, float32 [N, C]."""
        cached = self.__dict__.setdefault("teachers", {})
        key = choice.model_dump_json()
        if key not in cached:
            rows, labels = self.labeled
            teacher = teachers.TEACHERS[choice.name].fit(
                features=self.features,
                alphas=self.weights.alphas,
                rows=rows,
                labels_L=labels,
                classes=len(self.splits.classes),
                **choice.options,
            )
            cached[key] = teacher.probs_NC.astype(np.float32)
        return np.asarray(cached[key])

    def material(self, settings: Distill) -> batches.Material:
        """The training material of a student under these settings; val is the labeled images, as none are reserved."""
        rows, labels = self.labeled
        probs = {name: np.asarray(source_outputs.probs_NK) for name, source_outputs in self.outputs.items()}
        needs = methods.METHODS[settings.method.name].needs
        return batches.Material(
            images_NHWC=np.asarray(self.splits.train.resized(self.spec.input_px)),
            labeled=rows,
            labels=labels,
            unlabeled=self.splits.unlabeled_rows,
            val=rows,
            val_labels=labels,
            source_probs=probs if "sources" in needs else {},
            alphas=self.weights.alphas if "sources" in needs else {},
            teacher_NC=self.teacher(settings.teacher) if "teacher" in needs else None,
        )


def train_student(draw: Draw, method: str) -> tuple[loop.TrainedStudent, batches.Task]:
    """Train one student; returns it with its training task."""
    settings = draw.bank.profile.settings(method, draw.target, draw.seed)
    task = batches.Task(
        spec=draw.spec, material=draw.material(settings), settings=settings, steps=settings.steps, seed=draw.seed
    )
    return loop.fit(initial_student(draw), task), task


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
        "top1": round(score.top1, 6),
        "balanced_accuracy": round(score.balanced, 6),
        "n_test": score.n,
        "steps": settings.steps,
        "samples": samples,
        "train_seconds": round(seconds, 2),
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


def initial_student(draw: Draw) -> Any:
    """The student before its first step: the profile's initial weights and a head that the seed initializes."""
    initial_run = draw.bank.initial_run()
    model = build_student(draw.spec, draw.seed, initialize=initial_run is None)
    if initial_run:
        state = read_state(initial_run / "distill/student.safetensors")
        backbone = {name: tensor for name, tensor in state.items() if name.startswith("backbone.")}
        backbone = {name.removeprefix("backbone."): tensor for name, tensor in backbone.items()}
        model.backbone.load_state_dict(backbone)  # type: ignore[union-attr]
    return model


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
        name: score_hidden(teachers.probe(features, rows, labels, classes).probs_NC)
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
