"""A draw of few labels from a pack, divided by the product's own rules, and a student that is trained on it.

The pack's test set is only opened for the student that ships. N images of train, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks.suite.bank import Bank
from benchmarks.suite.draws import Draw, initial_student
from edgedistill.data.image_store import Selection
from edgedistill.data.splits import LabeledImages, Splits, evenly_spaced
from edgedistill.distill import batches, loop
from edgedistill.distill.teachers import TEACHERS
from edgedistill.labels import divide
from edgedistill.labels.divide import Division, Pool, Rules
from edgedistill.labels.draws import UNLABELED
from edgedistill.labels.protocol import Protocol
from edgedistill.recipe.schema import Student
from edgedistill.records import StudentSpec
from edgedistill.similarity.chance import OFF
from edgedistill.steps.candidate import HELD_OUT
from edgedistill.students import space

TEST_FRACTION, VAL_FRACTION = 0.3, 0.2  # the recipe's defaults
SHARED = ("pool", "outputs", "features")  # by all draws of a target
GROUPED = ("gtsrb",)  # packs with several labels of one group; those of chestxray are of different persons
LABELED = ("division", "splits", "weights", "teacher_probs")  # by draws of the same labels


def group(target: str, name: str, label: int) -> str | None:
    """What an image of a pack belongs to: a track of a sign, a person; None where its name does not tell."""
    if target == "gtsrb":
        return f"{label}/{name.partition('_')[0]}"  # 00012_18: frame 18 of the class's track 12
    return name.partition("_")[0] if target == "chestxray" and name.startswith("person") else None


def pool_of(bank: Bank, target: str) -> Pool:
    """The train images of a pack with all labels, as the product would divide them."""
    store = bank.splits(target, 0).train
    images = bank.splits(target, 0).test_set.store
    columns = pq.read_table(bank.packs / target / "train.parquet", columns=["image", "label"]).to_pydict()
    paths, labels = [image["path"] or "" for image in columns["image"]], columns["label"]
    assert store.n == len(paths), "every image of a pack can be read"
    groups = [group(target, path, label) for path, label in zip(paths, labels, strict=True)]
    return Pool(
        names=[f"train/{row:08d}" for row in range(store.n)],
        labels_N=np.array(labels, dtype=np.int64),
        hashes=store.hashes,
        is_val_N=np.zeros(store.n, dtype=bool),
        groups=groups if any(groups) else None,
        test_hashes=images.hashes,
        test_groups=[None] * images.n,
    )


@dataclass(frozen=True, kw_only=True)
class DividedDraw(Draw):
    """A target with one draw of labels, divided by a protocol.

    Attributes:
        per_class: labels of each class that are drawn; a class with fewer images has all of them.
        protocol: how the labels are used.
        fold: with folds, the fold that is the test set.
        val: whether a part of the labels is held out to choose; else all train.
        input_px: input size of the student; None for the profile's.
    """

    per_class: int
    protocol: Protocol = "folds"
    fold: int | None = None
    val: bool = False
    input_px: int | None = None

    def changed(self, **fields: Any) -> DividedDraw:
        """The same draw with other fields; what does not depend on the labels is shared."""
        other = replace(self, **fields)
        has_same_labels = (self.protocol, self.fold, self.val) == (other.protocol, other.fold, other.val)
        shared = (*SHARED, *(LABELED if has_same_labels else ()))
        vars(other).update({name: vars(self)[name] for name in shared if name in vars(self)})
        return other

    @cached_property
    def pool(self) -> Pool:
        """The train images of the target with all labels."""
        return pool_of(self.bank, self.target)

    @cached_property
    def division(self) -> Division:
        """The rows of labeled, val, unlabeled, test and reserve."""
        everything, rules = self.pool, self._rules
        if self.protocol == "folds":
            return divide.divide(everything, rules)
        drawn = self.changed(protocol="folds", fold=None, val=False).division.labeled
        labels_N = np.full(len(everything.labels_N), UNLABELED)
        labels_N[drawn] = everything.labels_N[drawn]
        return divide.divide(replace(everything, labels_N=labels_N), replace(rules, per_class=None))

    @property
    def _rules(self) -> Rules:
        return Rules(
            protocol=self.protocol,
            classes=len(self.bank.splits(self.target, 0).classes),
            per_class=self.per_class,
            val_fraction=VAL_FRACTION if self.val else 0.0,
            test_fraction=TEST_FRACTION,
            seed=self.seed,
            fold=self.fold,
        )

    @cached_property
    def splits(self) -> Splits:
        """The splits of the division; without a fold or a hold-out the test set is the pack's."""
        official, division = self.bank.splits(self.target, 0), self.division
        labels_N = self.pool.labels_N
        test_set = official.test_set
        if len(division.test):
            store = Selection(store=official.train, rows=division.test)  # type: ignore[arg-type]
            test_set = LabeledImages(
                store=store, labels_N=labels_N[division.test], units_N=division.units_N[division.test]
            )
        return replace(
            official,
            labeled_rows=division.labeled,
            labeled_labels=labels_N[division.labeled],
            val_rows=division.val,
            val_labels=labels_N[division.val],
            unlabeled_rows=division.unlabeled,
            reserve_rows=division.reserve,
            test_set=test_set,
            units_N=division.units_N,
            folds=division.folds,
        )

    @cached_property
    def spec(self) -> StudentSpec:
        """The profile's student, at the input size of this draw."""
        options = {**self.bank.profile.student, **({"input_px": self.input_px} if self.input_px else {})}
        section = Student(families={options.pop("family"): options})
        return space.candidates(section, len(self.splits.classes))[0]

    @cached_property
    def teacher_probs(self) -> np.ndarray:
        """The teacher's probabilities of every train image, float32 [N, C]; of those in no pool, uniform."""
        splits, choice = self.splits, self.bank.profile.settings("auto", self.target, self.seed).teacher
        assert not choice.options.get("tuned"), "this teacher tunes no source"
        rows = np.sort(np.concatenate([splits.labeled_rows, splits.val_rows, splits.unlabeled_rows]))
        fitted = TEACHERS[choice.name].fit(
            features={name: features_ND[rows] for name, features_ND in self.features.items()},
            alphas=self.weights.alphas,
            rows=np.searchsorted(rows, splits.labeled_rows),
            labels_L=splits.labeled_labels,
            classes=len(splits.classes),
            units_L=splits.units_N[splits.labeled_rows],
            **(choice.options | {"level": OFF}),
        )
        probs_NC = np.full((splits.train.n, len(splits.classes)), 1.0 / len(splits.classes), dtype=np.float32)
        probs_NC[rows] = fitted.probs_NC
        return probs_NC


def train(draw: DividedDraw, *, steps: int | None = None) -> loop.TrainedStudent:
    """Train the draw's student with `method: auto`, by default for the profile's steps; fewer steps are a trial's."""
    settings, splits = draw.bank.profile.settings("auto", draw.target, draw.seed), draw.splits
    unlabeled = splits.unlabeled_rows
    held_out = evenly_spaced(len(unlabeled), min(HELD_OUT if steps else 0, len(unlabeled) // 4))
    material = batches.Material(
        images_NHWC=np.asarray(splits.train.resized(draw.spec.input_px)),
        labeled=splits.labeled_rows,
        labels=splits.labeled_labels,
        unlabeled=np.delete(unlabeled, held_out),
        val=splits.val_rows,
        val_labels=splits.val_labels,
        source_probs={},
        alphas={},
        held_out=unlabeled[held_out],
        teacher_NC=draw.teacher_probs,
    )
    return loop.fit(initial_student(draw), draw.task(settings, material, steps))
