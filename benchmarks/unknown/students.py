"""The students of a cell: those of the folds and the one that ships, and their int8 graphs' answers.

N images, C classes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from benchmarks.suite.draws import Draw, initial_student
from benchmarks.suite.protocol import FORMER_LEVEL, Knowledge, Profile, load
from edgedistill.data.splits import evenly_spaced
from edgedistill.distill import loop
from edgedistill.distill.teachers import TEACHERS
from edgedistill.export import quantize
from edgedistill.export.infer import predict_onnx
from edgedistill.export.onnx import export
from edgedistill.labels.protocol import assign_folds
from edgedistill.recipe.schema import Export, Quantize
from edgedistill.recipe.section import Choice

METHOD = "selftrained"  # the suite's name of auto
RESERVE, UNKNOWNS, LEAST_UNKNOWNS = 500, 300, 50
SETTINGS = Quantize(method="minmax", targets=("cpu",))


def profile() -> Profile:
    """The suite's profile cpu with the sources that need no training."""
    weigh = load("cpu").weigh.model_copy(update={"also": ()})
    return load("cpu").model_copy(update={"finetuned": {}, "weigh": weigh})


@dataclass(frozen=True, kw_only=True, eq=False)
class Part(Draw):
    """A draw of which only some images train: those at `rows`, with their labels, and those at `unlabeled`."""

    rows: np.ndarray
    labels_L: np.ndarray
    unlabeled: np.ndarray

    @property
    def labeled(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows and classes of the labeled images that train."""
        return self.rows, self.labels_L

    def teacher(self, choice: Choice, knowledge: Knowledge = "none", level: float = FORMER_LEVEL) -> np.ndarray:
        """The teacher that saw no other image, as in the product; the rows of the others are uniform."""
        assert knowledge == "none" and not choice.options.get("tuned"), "this benchmark's row knows and tunes nothing"
        rows = np.sort(np.concatenate([self.rows, self.unlabeled]))
        classes = len(self.splits.classes)
        teacher = TEACHERS[choice.name].fit(
            features={name: features_ND[rows] for name, features_ND in self.features.items()},
            alphas=self.weights.alphas,
            rows=np.searchsorted(rows, self.rows),
            labels_L=self.labels_L,
            classes=classes,
            **(choice.options | {"level": level}),
        )
        probs_NC = np.full((self.splits.train.n, classes), 1.0 / classes, dtype=np.float32)
        probs_NC[rows] = teacher.probs_NC
        return probs_NC

    def graph(self) -> bytes:
        """Train the student on this part; its int8 graph."""
        settings = self.bank.profile.settings(METHOD, self.target, self.seed)
        material = replace(self.material(settings), unlabeled=self.unlabeled)
        student = loop.fit(initial_student(self), self.task(settings, material)).model
        rows = np.sort(np.concatenate([self.rows, self.unlabeled]))
        rows = rows[evenly_spaced(len(rows), SETTINGS.calibration_images)]
        images_NHWC = np.asarray(self.splits.train.resized(self.spec.input_px)[rows])
        with tempfile.TemporaryDirectory(prefix="edgedistill-") as folder:
            path = Path(folder) / "student.onnx"
            export(student, self.spec, path=path, images_NHWC=images_NHWC[:32], settings=Export(min_agreement=0.0))
            model = onnx.load(path)
        ranges = quantize.choose_ranges(model, images_NHWC, SETTINGS).ranges
        return bytes(quantize.graph_maker(model, ranges, "cpu")(()).SerializeToString())


def part(draw: Draw, rows: np.ndarray, labels_L: np.ndarray, unlabeled: np.ndarray) -> Part:
    """A part of a draw, with the features that the draw has loaded."""
    smaller = Part(
        bank=draw.bank, target=draw.target, seed=draw.seed, rows=rows, labels_L=labels_L, unlabeled=unlabeled
    )
    vars(smaller).update(splits=draw.splits, outputs=draw.outputs, features=draw.features)
    return smaller


def answers(draw: Draw) -> dict[str, np.ndarray]:
    """The int8 graphs' logits: of fold students on their folds and the reserve; of the one that ships on all others."""
    splits, (rows, labels_L) = draw.splits, draw.labeled
    train_NHWC = splits.train.resized(draw.spec.input_px)
    shuffled = np.random.default_rng(draw.seed).permutation(splits.unlabeled_rows)
    n_reserve = min(RESERVE, len(shuffled) // 4)
    reserve, unlabeled = np.sort(shuffled[:n_reserve]), np.sort(shuffled[n_reserve:])
    reserve_NHWC = np.asarray(train_NHWC[reserve])
    labels_N = np.full(splits.train.n, -1)
    labels_N[rows] = labels_L
    folds = assign_folds(labels_N, splits.units_N, draw.seed)
    out_of_fold, fold_labels, on_reserve = [], [], []
    for fold in range(folds.count):
        scored = folds.rows(fold)
        trains_L = ~np.isin(rows, scored)
        graph = part(draw, rows[trains_L], labels_L[trains_L], unlabeled).graph()
        out_of_fold.append(predict_onnx(graph, np.asarray(train_NHWC[scored]), threads=1))
        on_reserve.append(predict_onnx(graph, reserve_NHWC, threads=1))
        fold_labels.append(labels_N[scored])
    graph = part(draw, rows, labels_L, unlabeled).graph()
    test = splits.open_test()
    return {
        "folds": np.concatenate(out_of_fold),
        "fold_labels": np.concatenate(fold_labels),
        "folds_on_reserve": np.stack(on_reserve),
        "reserve": predict_onnx(graph, reserve_NHWC, threads=1),
        "test": predict_onnx(graph, np.asarray(test.store.resized(draw.spec.input_px)), threads=1),
        "test_labels": test.labels_N,
        **{f"unknown/{name}": predict_onnx(graph, NHWC, threads=1) for name, NHWC in unknowns(draw)},
    }


def unknowns(draw: Draw) -> Iterable[tuple[str, np.ndarray]]:
    """Test images of the suite's other packs, without those of a class whose name the target has, too."""
    classes = {name.lower() for name in draw.splits.classes}
    for pack in draw.bank.profile.targets:
        other = draw.bank.splits(pack, 0)
        is_other_C = np.array([name.lower() not in classes for name in other.classes])
        test = other.open_test()
        rows = np.flatnonzero(is_other_C[test.labels_N])
        if pack != draw.target and len(rows) >= LEAST_UNKNOWNS:
            images_NHWC = test.store.resized(draw.spec.input_px)
            yield pack, np.asarray(images_NHWC[rows[evenly_spaced(len(rows), UNKNOWNS)]])
