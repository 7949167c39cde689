"""The sections of a recipe that say where images and labels come from (schema.py has the others)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt
from pydantic_core import PydanticCustomError

from edgedistill.recipe.options import LATER, NOTE, shortened
from edgedistill.recipe.section import Fraction, License, Open, Section


def _ascending(limits: Any) -> Any:
    if limits != "auto" and not limits[0] < limits[1]:
        raise ValueError("low must be less than high")
    return limits


def _problem(text: str) -> PydanticCustomError:
    return PydanticCustomError("prior", "{text}", {"text": text})


def _distribution(prior: Any) -> Any:
    """Shares by the classes' names; YAML reads a name such as 7 as a number."""
    if prior is None or prior == "labels":
        return prior
    if not isinstance(prior, Mapping):
        raise _problem("must be `labels`, or the share of each class, as in {cat: 0.9, dog: 0.1}")
    shares = {str(name): share for name, share in prior.items()}
    for name, share in shares.items():
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < math.inf:
            raise _problem(f"the share of {shortened(name)} is {shortened(str(share))}, not a number above 0")
    if not math.isclose(total := math.fsum(shares.values()), 1.0, abs_tol=ROUNDED):
        raise _problem(f"the shares sum to {total:g}, not to 1")
    return shares


ROUNDED = 0.01  # shares may be rounded


class Data(Open):
    """The target task: where its images are, how many labels may be used, and what counts as good."""

    kind: str
    """Where the images come from: `folder`, `csv`, `cub`, `hf`, `torchvision`, `elpv` or `digits`."""
    labels_per_class: PositiveInt | None = None
    """Labels of each class in train that may be used, a drawn val included; the other images count as unlabeled.
    Default: all."""
    val_fraction: float = Field(default=0.2, gt=0.0, le=0.9)
    """Share of each class's labeled images that is held out as val, where the data set has no val split of its own."""
    test_fraction: Fraction = 0.3
    """Share of each class that becomes the test set, where the data set has none of its own."""
    score: Literal["top1", "balanced"] = "top1"
    """The accuracy by which students are chosen and reported; `balanced` is the mean over the classes."""
    fit: Literal["crop", "squash"] = "crop"
    """How a picture becomes a square: the center is cut out, or the whole picture is resized."""
    store_px: int | None = Field(default=None, ge=1, le=4096)
    """Side of the stored squares in pixels; without it the largest input size of any source or student."""
    protocol: Annotated[Literal["auto", "test", "holdout", "folds"], LATER] = "auto"
    """How accuracy is measured: `test` by the official test split, `holdout` by `test_fraction` of each class, `folds`
    on every label by a student that was trained without it; `auto` takes the first that fits (docs/your-data.md)."""
    group: Annotated[str | None, LATER] = None
    """What belongs together (a patient, a recording): a column of a table, or a pattern on an image's path with the
    part that names the group in parentheses. No group is on two sides of a split."""
    reserve: Annotated[int, Field(ge=0, le=10_000), LATER] = 500
    """At most this many unlabeled images, and at most a quarter of them, train nothing: on them int8 is compared with
    fp32. Where there is a test set they are set aside only if there are at least 400, and val has fewer than 500."""
    prior: Annotated[Literal["labels"] | dict[str, float] | None, BeforeValidator(_distribution), LATER] = None
    """How often each class occurs among the pictures that the student will see: `{cat: 0.9, dog: 0.1}`, or `labels`
    where the labels were drawn as they came. Its answers are adjusted to it (docs/methods.md)."""
    near_copies: Annotated[Literal["auto", "keep_together", "ignore"], LATER] = "auto"
    """One picture with other pixels, after compression, resizing or a small crop: `keep_together` puts such images on
    one side of every split; `auto` does where the test set is drawn, and `ignore` does not look for them."""
    range: Annotated[Literal["auto"] | tuple[float, float], AfterValidator(_ascending), LATER] = "auto"
    """`[low, high]`: the values that become black and white in pictures of more than 8 bits; `auto` takes the 0.1 and
    99.9 percentile over train."""
    license: Annotated[License | None, NOTE] = None
    """License of the images, such as `CC-BY-4.0`, instead of the one that the data set states; `own`: nobody else has
    rights in them."""


class Unlabeled(Section):
    """More images without a label, too many for a folder: WebDataset shards, streamed."""

    kind: Literal["wds"]
    """WebDataset: tar files of images."""
    urls: str | tuple[str, ...]
    """Paths or addresses of the tar files; braces stand for many: `shards/{0000..0099}.tar`."""
    mixed: PositiveInt = 4096
    """Least number of images that are shuffled together; two such windows are in memory at a time."""
    license: Annotated[License | None, NOTE] = None
    """License of these images; `own`: nobody else has rights in them."""
