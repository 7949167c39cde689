"""The classes on the test images: recall and precision of each, and what is taken for what.

With folds these are the labeled images, each by the student that was trained without it.
N test images, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from edgedistill.labels.unknown import Interval
from edgedistill.report import intervals
from edgedistill.report.blocks import Block, Row, not_run, shorten
from edgedistill.report.facts import Facts

MAX_CLASSES = 20  # in a table or a drawing; report.json has all
MAX_CONFUSIONS = 10
MAX_NAME = 24  # letters of a class in a table's second column


@dataclass(frozen=True, kw_only=True)
class Share:
    """`hits` of `n` images with the 95 % interval, fractions; `share` is None where n is 0."""

    hits: int
    n: int
    share: float | None
    ci95: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """One class: recall over its own test images, precision over the images that the graph takes for it."""

    name: str
    recall: Share
    precision: Share


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """One graph on the test images: every class, and the cells of the confusion matrix that are not 0.

    A cell is (true class, predicted class, images), both classes by their index in `classes`.
    """

    artefact: str
    n: int
    classes: tuple[ClassScore, ...]
    cells: tuple[tuple[int, int, int], ...]

    def mistakes(self) -> list[tuple[int, int, int]]:
        """The cells beside the diagonal: those of most images first, among them those of the smallest true class."""
        wrong = [cell for cell in self.cells if cell[0] != cell[1]]
        return sorted(wrong, key=lambda cell: (-cell[2], self.classes[cell[0]].recall.n, cell))

    def hardest(self, limit: int = MAX_CLASSES) -> list[int]:
        """The classes if there are at most `limit`, else those of lowest recall, lowest first; indices."""
        if len(self.classes) <= limit:
            return list(range(len(self.classes)))
        scored = [index for index, score in enumerate(self.classes) if score.recall.n]
        return sorted(scored, key=lambda index: (self.classes[index].recall.share, -self.classes[index].recall.n))[
            :limit
        ]


def confusions(facts: Facts) -> tuple[Confusion, ...]:
    """The graph that the bundle runs by default, and fp32 where that is another; () without labeled test images."""
    labels_N = facts.predictions.get("labels", np.zeros(0, dtype=np.int64))
    if not (labels_N >= 0).any():
        return ()
    names = [name for name in dict.fromkeys((facts.default_graph, "fp32")) if name in facts.predictions]
    return tuple(_confusion(facts, name, labels_N) for name in names)


def _confusion(facts: Facts, artefact: str, labels_N: np.ndarray) -> Confusion:
    predicted_N, is_labeled_N = facts.predictions[artefact], labels_N >= 0
    is_right_N = predicted_N == labels_N
    share = partial(_share, is_right_N, interval=intervals.of(facts, is_right_N))
    pairs_N2 = np.stack([labels_N, predicted_N], axis=1)
    pairs_M2, counts_M = np.unique(pairs_N2[is_labeled_N], axis=0, return_counts=True)
    count = max(len(facts.classes), *(int(array_N[is_labeled_N].max()) + 1 for array_N in (labels_N, predicted_N)))
    scores = tuple(
        ClassScore(
            name=facts.classes[index] if index < len(facts.classes) else facts.class_name(index),
            recall=share(labels_N == index),
            precision=share(is_labeled_N & (predicted_N == index)),
        )
        for index in range(count)
    )
    cells = tuple(
        (int(true), int(predicted), int(images)) for (true, predicted), images in zip(pairs_M2, counts_M, strict=True)
    )
    return Confusion(artefact=artefact, n=int(is_labeled_N.sum()), classes=scores, cells=cells)


def _share(is_right_N: np.ndarray, member_N: np.ndarray, *, interval: Interval) -> Share:
    hits, n = int(is_right_N[member_N].sum()), int(member_N.sum())
    return Share(hits=hits, n=n, share=hits / n if n else None, ci95=interval(member_N))


def blocks(facts: Facts) -> list[Block]:
    """The table of the classes, and that of the largest confusions."""
    both = confusions(facts)
    if not both:
        if "labels" in facts.predictions:
            line = "no test image has a label"
        elif facts.predictions:
            line = f"the labels of the {facts.scored_images} are not recorded: {not_run('export')}"
        else:
            line = not_run("export")
        return [Block(key="classes", title="Classes", lines=(line,))]
    return [_classes(facts, *both), _confusions(facts, *both)]


def _classes(facts: Facts, default: Confusion, fp32: Confusion | None = None) -> Block:
    listed, total = default.hardest(), len(default.classes)
    which = f"; the {len(listed)} of {total} with the lowest recall" if len(listed) < total else ""
    kind = intervals.kind(facts, len(facts.predictions["labels"]))
    header: Row = ("class", "images", "recall [95 %]", "precision [95 %]")
    header += ("fp32 recall", "fp32 precision") if fp32 else ()
    return Block(
        key="classes",
        title="Classes",
        note=f"{default.artefact} on {default.n} {facts.scored_images}, {kind}{which}",
        header=header,
        rows=tuple(_class_row(facts, index, default, fp32) for index in listed),
        lines=("report.json has all classes",) if which else (),
    )


def _class_row(facts: Facts, index: int, default: Confusion, fp32: Confusion | None) -> Row:
    score = default.classes[index]
    row = (facts.class_name(index), str(score.recall.n), _with_interval(score.recall), _with_interval(score.precision))
    return row + ((_alone(fp32.classes[index].recall), _alone(fp32.classes[index].precision)) if fp32 else ())


def _alone(share: Share) -> str:
    return "-" if share.share is None else f"{100 * share.share:.1f} %"


def _with_interval(share: Share) -> str:
    if share.share is None:
        return "-"
    low, high = share.ci95
    return f"{_alone(share)} [{100 * low:.1f}, {100 * high:.1f}]"


def _confusions(facts: Facts, default: Confusion, fp32: Confusion | None = None) -> Block:
    mistakes, title = default.mistakes(), "Confusions"
    if not mistakes:
        line = f"{default.artefact}: all {default.n} {facts.scored_images} are right"
        return Block(key="confusions", title=title, lines=(line,))
    listed = mistakes[:MAX_CONFUSIONS]
    note = f"the most frequent mistakes of {default.artefact}"
    if len(mistakes) > len(listed):
        note += f"; {len(listed)} of {len(mistakes)} pairs, report.json has all"
    counts = {(true, predicted): images for true, predicted, images in fp32.cells} if fp32 else {}
    rows = tuple(
        (
            facts.class_name(true),
            shorten(facts.class_name(predicted), MAX_NAME),
            str(images),
            f"{100 * images / default.classes[true].recall.n:.1f} %",
            *([str(counts.get((true, predicted), 0))] if fp32 else []),
        )
        for true, predicted, images in listed
    )
    header: Row = ("true class", "predicted", "images", "of the class", *(["fp32 images"] if fp32 else []))
    return Block(key="confusions", title=title, note=note, header=header, rows=rows)
