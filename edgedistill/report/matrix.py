"""The confusion matrix as a drawing, for as many classes as can be told apart in it."""

from __future__ import annotations

from edgedistill.report.blocks import shorten
from edgedistill.report.classes import MAX_CLASSES, Confusion, confusions
from edgedistill.report.drawing import SERIES, WIDTH_IN, Picture, new_figure, to_svg, with_style
from edgedistill.report.facts import Facts

FAINTEST, STRONGEST = 0.12, 0.6  # opacity of a cell with one image of many, and with all of them: ink stays legible
MAX_LETTERS = 22  # of a class name
KEYS = ("classes", "confusions")  # the blocks beside which the drawings of the default graph and of fp32 stand


def pictures(facts: Facts) -> dict[str, Picture]:
    """The confusion matrix of the default graph and of fp32, by block key; none for more than MAX_CLASSES classes."""
    return {
        key: _matrix(
            key, confusion, [shorten(facts.class_name(index), MAX_LETTERS) for index in range(len(confusion.classes))]
        )
        for key, confusion in zip(KEYS, confusions(facts), strict=False)
        if len(confusion.classes) <= MAX_CLASSES
    }


@with_style
def _matrix(key: str, confusion: Confusion, names: list[str]) -> Picture:
    """Draw a row for each true class and a column for each predicted one; color is the share of the true class."""
    from matplotlib.patches import Rectangle

    count = len(names)
    font_size = 9.0 if count <= 10 else 6.5
    label_in = max(map(len, names)) * font_size * 0.6 / 72  # letters are about 0.6 as wide as high
    side_in = min(0.42 * count, WIDTH_IN - label_in - 0.5)
    figure = new_figure(side_in + label_in + 0.6)
    axes = figure.subplots()
    for true, predicted, images in confusion.cells:
        share = images / confusion.classes[true].recall.n
        opacity = FAINTEST + (STRONGEST - FAINTEST) * share
        color = SERIES[2] if true == predicted else SERIES[1]
        corner = (predicted - 0.5, true - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, facecolor=color, alpha=opacity, linewidth=0))
        axes.text(predicted, true, str(images), ha="center", va="center", fontsize=font_size)
    axes.set_xlim(-0.5, count - 0.5)
    axes.set_ylim(count - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.set_xticks(range(count), names, rotation=90, fontsize=font_size)
    axes.set_yticks(range(count), names, fontsize=font_size)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(f"{confusion.artefact}, {confusion.n} images")
    right = sum(images for true, predicted, images in confusion.cells if true == predicted)
    alt = f"Confusion matrix of {confusion.artefact}: {right} of {confusion.n} images are right."
    return Picture(svg=to_svg(figure, key), alt=alt)
