"""The draw that all methods of a target and seed share: its labels, its sources' outputs, its teachers, its material.

The seed fixes the label draw, the initial weights of the head, the order of the images and their augmentation; every
method starts from the same weights. Labels beyond the drawn ones are not read before the last step.
"""

from __future__ import annotations

import functools
import zlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.suite.bank import Bank
from benchmarks.suite.protocol import FORMER_LEVEL, Knowledge
from edgedistill.data.splits import Splits
from edgedistill.distill import batches, evaluate, methods, teachers
from edgedistill.distill.tuner import Tuner
from edgedistill.errors import InputError
from edgedistill.labels.divide import TEST_SEED
from edgedistill.labels.prior import Prior, estimated_shares, label_terms
from edgedistill.labels.protocol import divide_in_halves
from edgedistill.recipe.options import keyword_only
from edgedistill.recipe.schema import Augment, Distill, Student, Weigh
from edgedistill.recipe.section import Choice
from edgedistill.records import SourceWeights, StudentSpec
from edgedistill.run import artifacts
from edgedistill.run.files import sha256_file
from edgedistill.similarity.weigh import weigh_sources
from edgedistill.sources import registry
from edgedistill.students import space
from edgedistill.students.build import build_student
from edgedistill.students.checkpoints import read_state

OWN = "the student"  # as a source: its own initial backbone


@dataclass(frozen=True, kw_only=True)
class Draw:
    """A target with the label draw of one seed, of `times` the profile's labels; `only` names the sources, if not all.

    The source OWN is the student's own initial backbone.
    """

    bank: Bank
    target: str
    seed: int
    times: int = 1
    only: tuple[str, ...] | None = None

    def of_row(self, method: str) -> Draw:
        """The draw that a row of the profile trains on: itself, unless the row has other sources or more labels."""
        times, choice = self.bank.profile.times(method), self.bank.profile.sources(method)
        names = self.bank.sources_for(self.target)
        if choice == "best":
            only: tuple[str, ...] | None = (max(names, key=lambda name: self.weights.alphas[name]),)
        elif choice == "own":
            only = (OWN,)
        elif choice == "all":
            only = None
        else:
            order = np.random.default_rng([self.seed, zlib.crc32(self.target.encode())]).permutation(sorted(names))
            only = tuple(order[:choice].tolist())
        return self if (times, only) == (1, None) else replace(self, times=times, only=only)

    @cached_property
    def splits(self) -> Splits:
        """The splits of the target's pack.

        Raises:
            InputError: an image of train has the pixels of a test image: teachers answer, and learn from, all of train.
        """
        profile, both = self.bank.profile, self.bank.splits(self.target, 0).duplicates
        if both:
            raise InputError(f"{self.target}: {both} images of train have the pixels of test images", "remove them")
        if profile.labeled == "natural":
            labels = self.times * profile.labels(self.target)
            return natural_draw(self.bank.splits(self.target, 0), labels, self.seed)
        return self.bank.splits(self.target, self.seed, self.times * profile.labels(self.target))

    @cached_property
    def labeled(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows and classes of all labeled images; none are reserved for validation, as it would select nothing."""
        rows = np.concatenate([self.splits.labeled_rows, self.splits.val_rows])
        return rows, np.concatenate([self.splits.labeled_labels, self.splits.val_labels])

    def halves(self) -> np.ndarray:
        """The half of each labeled image, as a training with a peer divides them.

        Raises:
            InputError: fewer than two classes can be divided.
        """
        rows, labels = self.labeled
        return divide_in_halves(labels, self.splits.units_N[rows], TEST_SEED)

    def without_half(self, half: int) -> Draw:
        """The draw without the labels of one half, with the images and features that this one has loaded."""
        (rows, labels), has_label_L = self.labeled, self.halves() != half
        draw = replace(self)
        vars(draw).update(splits=self.splits, features=self.features, labeled=(rows[has_label_L], labels[has_label_L]))
        return draw

    @cached_property
    def spec(self) -> StudentSpec:
        """The profile's student for this target."""
        options = dict(self.bank.profile.student)
        section = Student(families={options.pop("family"): options})
        return space.candidates(section, len(self.splits.classes))[0]

    @cached_property
    def outputs(self) -> dict[str, Any]:
        """Each source's outputs on every train image."""
        names = self.bank.sources_for(self.target) if self.only is None else self.only
        return {name: self.bank.outputs(name, self.target) for name in names if name != OWN}

    @cached_property
    def features(self) -> dict[str, np.ndarray]:
        """Each source's features of every train image, in memory."""
        if self.only == (OWN,):
            backbone = initial_student(self).get_submodule("backbone")
            images_NHWC = np.asarray(self.splits.train.resized(self.spec.input_px))
            return {OWN: evaluate.logits(backbone, self.spec, images_NHWC, batch=256)}
        return {name: np.asarray(source_outputs.features_ND) for name, source_outputs in self.outputs.items()}

    @cached_property
    def weights(self) -> SourceWeights:
        """The scores of every metric on the labeled images, and the source weights, as before there was a test."""
        return self.weights_by(self._former)

    @property
    def _former(self) -> Weigh:
        return self.bank.profile.weigh.model_copy(update={"level": FORMER_LEVEL})

    def weights_by(self, settings: Weigh) -> SourceWeights:
        """As `weights`, by these settings."""
        rows, labels = self.labeled
        evidence = {
            name: (self.features[name][rows], np.asarray(source_outputs.probs_NK)[rows])
            for name, source_outputs in self.outputs.items()
        }
        return weigh_sources(evidence, labels, settings, self.seed)

    def prior(self, knowledge: Knowledge) -> Prior | None:
        """The prior that a method knows: none, that of its labels, or the shares of all train images of the pack."""
        if knowledge == "none":
            return None
        classes = len(self.splits.classes)
        if knowledge == "labels":
            counts_C = np.bincount(self.labeled[1], minlength=classes)
            return Prior(shares_C=estimated_shares(counts_C), score="top1", stated=False)
        truth = self.bank.truth(self.target)
        counts_C = np.bincount(truth[truth >= 0], minlength=classes)
        return Prior(shares_C=counts_C / counts_C.sum(), score="top1")

    def teacher(self, choice: Choice, knowledge: Knowledge = "none", level: float = FORMER_LEVEL) -> np.ndarray:
        """The teacher's probabilities of the target's classes on every train image, float32 [N, C]."""
        cached = self.__dict__.setdefault("teachers", {})
        key, prior = (choice.model_dump_json(), knowledge, level), self.prior(knowledge)
        if key not in cached:
            rows, labels = self.labeled
            kind = teachers.TEACHERS[choice.name]
            options = choice.options | ({"level": level} if "level" in keyword_only(kind.fit) else {})
            if kind.tunes and self.only != (OWN,):  # the student is no source that can be tuned
                options["tune"] = self.tuner.tune
            teacher = kind.fit(
                features=self.features,
                alphas=self.weights.alphas if self.only is None else dict.fromkeys(self.features, 1.0),
                rows=rows,
                labels_L=labels,
                classes=len(self.splits.classes),
                **options,
            )
            if prior:
                teacher = teachers.adjusted(teacher, prior, self.splits.unlabeled_rows)
            cached[key] = teacher.probs_NC.astype(np.float32)
        probs_NC: np.ndarray = cached[key]
        return probs_NC

    @property
    def tuner(self) -> Tuner:
        """What tunes sources to the labels; what it trains is kept in the bank's cache."""
        rows, labels = self.labeled
        return Tuner(
            network=functools.cache(lambda name: registry.load(self.bank.source_section(name), Path())),
            store=self.splits.train,
            rows=rows,
            labels_L=labels,
            units_L=self.splits.units_N[rows],
            classes=len(self.splits.classes),
            answered=np.arange(self.splits.train.n),
            settings=Augment.model_validate(self.bank.profile.distill["augment"]),
            seed=self.seed,
            cache=self.bank.runs / "cache",
        )

    def material(
        self, settings: Distill, knowledge: Knowledge = "none", weighing: Weigh | None = None
    ) -> batches.Material:
        """The training material of a student under these settings; val is the labeled images, as none are reserved."""
        weighing = weighing or self._former
        rows, labels = self.labeled
        counts_C = np.bincount(labels, minlength=len(self.splits.classes))
        weights_C, shift_C = label_terms(settings.class_weights, counts_C, self.prior(knowledge), "top1")
        needs = methods.METHODS[settings.method.name].needs
        outputs = self.outputs if "sources" in needs else {}
        alphas = (self.weights if weighing == self._former else self.weights_by(weighing)).alphas if outputs else {}
        return batches.Material(
            images_NHWC=np.asarray(self.splits.train.resized(self.spec.input_px)),
            labeled=rows,
            labels=labels,
            unlabeled=self.splits.unlabeled_rows,
            val=rows,
            val_labels=labels,
            source_probs={name: np.asarray(source_outputs.probs_NK) for name, source_outputs in outputs.items()},
            alphas=alphas,
            teacher_NC=self.teacher(settings.teacher, knowledge, weighing.level) if "teacher" in needs else None,
            class_weights_C=weights_C,
            label_shift_C=shift_C,
        )

    def task(self, settings: Distill, material: batches.Material, steps: int | None = None) -> batches.Task:
        """The training of the student; without `steps` for as many as the profile names."""
        assert settings.steps != "auto", "a profile names them"
        return batches.Task(
            spec=self.spec, material=material, settings=settings, steps=steps or settings.steps, seed=self.seed
        )


def natural_draw(splits: Splits, per_class: int, seed: int) -> Splits:
    """As many labels as a balanced draw has, drawn as they come from all of `splits`; the other images have none."""
    rows = np.concatenate([splits.labeled_rows, splits.val_rows])
    labels = np.concatenate([splits.labeled_labels, splits.val_labels])
    order = np.argsort(rows)
    drawn = np.sort(np.random.default_rng([seed, len(rows)]).permutation(len(rows))[: per_class * len(splits.classes)])
    return replace(
        splits,
        labeled_rows=rows[order][drawn],
        labeled_labels=labels[order][drawn],
        val_rows=rows[:0],
        val_labels=labels[:0],
        unlabeled_rows=np.setdiff1d(np.concatenate([rows, splits.unlabeled_rows]), rows[order][drawn]),
    )


def initial_hash(draw: Draw) -> str:
    """Of the weights that every student of the profile begins with: only students that share them are compared."""
    run = draw.bank.initial_run()
    assert run is not None, "the profile trains them"
    return sha256_file(run / artifacts.STUDENT_WEIGHTS.path)[:16]


def initial_student(draw: Draw) -> Any:
    """The student before its first step: the profile's initial weights and a head that the seed initializes."""
    initial_run = draw.bank.initial_run()
    model = build_student(draw.spec, draw.seed, initialize=initial_run is None)
    if initial_run:
        state = read_state(initial_run / artifacts.STUDENT_WEIGHTS.path)
        backbone = {name: tensor for name, tensor in state.items() if name.startswith("backbone.")}
        backbone = {name.removeprefix("backbone."): tensor for name, tensor in backbone.items()}
        model.backbone.load_state_dict(backbone)  # type: ignore[union-attr]
    return model
