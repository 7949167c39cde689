"""The records of `edgedistill suggest`: the pictures to label next; plain data."""

from __future__ import annotations

from dataclasses import dataclass

from edgedistill.records import MoreLabels


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A picture to label.

    Attributes:
        path: its name in the data set; of a folder, relative to it.
        how: how it was chosen, "random" or "suggested": what its label gets in the column `how` of labels.csv.
        why: the reason in a few words.
        cluster: number of the cluster of pictures that look alike to the sources, 0 for the largest.
        guess: the teacher's class for it; "" while there is no teacher.
        sure: the teacher's probability of that class; None while there is no teacher.
        row: its place in the image store.
    """

    path: str
    how: str
    why: str
    cluster: int
    guess: str = ""
    sure: float | None = None
    row: int = -1


@dataclass(frozen=True, kw_only=True)
class Suggestions:
    """The pictures of a data set to label next, the first ones first.

    Attributes:
        name: of the recipe, the run or the folder.
        source: its path.
        pictures: number of pictures, those that cannot be read included.
        labels: number of labels by class.
        strategy: a key of labels.suggestions.STRATEGIES.
        sources: names of the sources whose features were used; () if small pixels were.
        suggestions: the pictures.
        clusters: the cluster of every picture that may be suggested, by path, nearest to its middle first.
        more: whether more labels pay; None without sources or labels.
        notes: what else a reader must know: what was left out, and what was not looked at.
        seconds: how long it took.
    """

    name: str
    source: str
    pictures: int
    labels: dict[str, int]
    strategy: str
    sources: tuple[str, ...]
    suggestions: tuple[Suggestion, ...]
    clusters: dict[str, int]
    more: MoreLabels | None
    notes: tuple[str, ...]
    seconds: float
