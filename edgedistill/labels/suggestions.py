"""Which pictures to label next: strategies over features and, once there are labels, a teacher's probabilities.

A strategy is greedy: it names one picture after the other, and each depends only on those before it, so a larger batch
contains the smaller one. Every fifth picture is drawn at random instead, whatever the strategy: on these, accuracy can
be estimated without bias. Nothing here depends on the order of files: the rows of a pool are sorted by the caller.

    STRATEGIES[name].start(pool) -> Chooser
    suggested(pool, n, strategy) -> picks

M pictures of a pool, D features, C classes, R references, K clusters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgedistill.labels.draws import UNLABELED

Floats = NDArray[np.floating[Any]]
Rows = NDArray[np.int64]

DEFAULT = "herding"
EVERY = 5  # one picture of this many is drawn at random
REFERENCES = 8192  # pictures whose coverage is counted
BLOCK = 1024  # rows whose kernel with all references is in memory at a time
REFRESHED = 64  # gains that are computed anew at a time
SIGMA = 0.7  # width of the kernel, for features of unit length
NEIGHBORS = 20  # of a typical picture, in its cluster
LEAST_MEMBERS = 5  # of a cluster that a typical picture is taken from
FITTED = 16_384  # pictures on which clusters are fitted
LEARNED = 8192  # pictures on which principal components are learned


@dataclass(frozen=True, eq=False, kw_only=True)
class Pool:
    """Pictures without a label, one of each set of copies or group, and the labeled ones.

    Attributes:
        features_MD: features of unit length, float32 [M, D].
        labels_M: class of each picture, -1 without a label, int64 [M].
        seed: seed of the random draws and of the clusters.
        probs_MC: a teacher's class probabilities [M, C]; None while there are no labels.

    The order of the rows must not depend on that of the files: they are pseudo-random by the pictures' names, as
    `draws.keyed_hashes` sorts them. The pictures that are drawn at random are the first rows.
    """

    features_MD: Floats
    labels_M: Rows
    seed: int = 0
    probs_MC: Floats | None = None

    @property
    def open_rows(self) -> Rows:
        """Rows of the pictures without a label, ascending."""
        return np.flatnonzero(self.labels_M == UNLABELED)

    @property
    def labeled_rows(self) -> Rows:
        """Rows of the labeled pictures, ascending."""
        return np.flatnonzero(self.labels_M != UNLABELED)


@dataclass(frozen=True, kw_only=True)
class Pick:
    """A picture of a pool to label; `how` is "random" or "suggested", `why` a few words."""

    row: int
    how: str
    why: str


class Chooser(Protocol):
    """A strategy at work on one pool."""

    def next(self, is_open_M: NDArray[np.bool_]) -> tuple[int, str]:
        """The next row among the open ones, of which there is one at least, and why."""

    def take(self, row: int) -> None:
        """Count a row as labeled from now on."""


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """A way to choose pictures.

    Attributes:
        start: function of a pool that returns a Chooser.
        about: what it does, in a few words.
    """

    start: Callable[[Pool], Chooser]
    about: str


def suggested(pool: Pool, n: int, strategy: str = DEFAULT, every: int = EVERY) -> list[Pick]:
    """The next `n` pictures to label, or fewer where fewer are left.

    Args:
        pool: the pictures.
        n: number of pictures.
        strategy: a key of STRATEGIES.
        every: one picture of this many is drawn at random, uniformly from those that are left; 0: none is.
    """
    chooser, is_open_M = STRATEGIES[strategy].start(pool), pool.labels_M == UNLABELED
    picks = []
    for number in range(1, min(n, int(is_open_M.sum())) + 1):
        if strategy == "random" or (every and number % every == 0):
            pick = Pick(row=int(is_open_M.argmax()), how="random", why="drawn at random")
        else:
            row, why = chooser.next(is_open_M)
            pick = Pick(row=row, how="suggested", why=why)
        is_open_M[pick.row] = False
        chooser.take(pick.row)
        picks.append(pick)
    return picks


class _Random:
    """Uniform draws."""

    def __init__(self, pool: Pool) -> None:
        pass

    def next(self, is_open_M: NDArray[np.bool_]) -> tuple[int, str]:
        return int(is_open_M.argmax()), "drawn at random"

    def take(self, row: int) -> None:
        pass


# coverage


class _Herding:
    """The picture that covers most of what is not covered yet (MaxHerding, Bae et al. 2024, arXiv 2407.12212).

    A picture covers another as much as a Gaussian kernel of their features says. Once a teacher knows something, what
    it is unsure of, and what looks like a class with few labels, counts more (Uncertainty Herding, Bae et al. 2025,
    arXiv 2412.20644). Gains only shrink, so most of them need not be computed again (Minoux 1978).
    """

    def __init__(self, pool: Pool, sigma: float = SIGMA) -> None:
        self._features_MD, self._sigma = pool.features_MD, sigma
        self._references_RD = pool.features_MD[:REFERENCES]
        self._weights_R, self._doubt_M = _importance(pool)
        self._weights_R = self._weights_R[:REFERENCES]
        self._covered_R = np.zeros(len(self._references_RD), dtype=np.float32)
        for rows in _blocks(pool.labeled_rows):
            self._covered_R = np.maximum(self._covered_R, self._kernel(rows).max(axis=0))
        self._bounds_M = np.full(len(self._features_MD), -1.0)
        for rows in _blocks(pool.open_rows):
            self._bounds_M[rows] = self._gains(rows)

    def _kernel(self, rows: Rows) -> Floats:
        """The kernel of pictures with all references, float32 [rows, R]; 2 - 2 cos is the squared distance."""
        cosines = self._features_MD[rows] @ self._references_RD.T
        return np.asarray(np.exp((2.0 * cosines - 2.0) / np.float32(self._sigma**2)))

    def _gains(self, rows: Rows) -> Floats:
        return np.asarray(np.maximum(self._kernel(rows) - self._covered_R, 0.0) @ self._weights_R)

    def next(self, is_open_M: NDArray[np.bool_]) -> tuple[int, str]:
        bounds_M = np.where(is_open_M, self._bounds_M, -np.inf)
        is_stale_M = is_open_M.copy()
        while is_stale_M[(best := int(bounds_M.argmax()))]:
            candidates = np.flatnonzero(is_stale_M)
            top = np.argsort(-bounds_M[candidates], kind="stable")[:REFRESHED]
            rows = np.sort(candidates[top])
            bounds_M[rows] = self._bounds_M[rows] = self._gains(rows)
            is_stale_M[rows] = False
        unsure = self._doubt_M is not None and self._doubt_M[best] > 0.5
        return best, "typical of many, and the teacher is unsure" if unsure else "typical of many without a label"

    def take(self, row: int) -> None:
        self._covered_R = np.maximum(self._covered_R, self._kernel(np.array([row]))[0])


def _importance(pool: Pool) -> tuple[Floats, Floats | None]:
    """How much each picture counts, float32 [M], and how unsure the teacher is of it, from 0 to 1."""
    if pool.probs_MC is None:
        return np.ones(len(pool.labels_M), dtype=np.float32), None
    doubt_M = _doubt(pool.probs_MC)
    return (doubt_M * _rarity(pool)).astype(np.float32), doubt_M


def _doubt(probs_MC: Floats) -> Floats:
    """1 - the margin between the two most likely classes, [M]."""
    if probs_MC.shape[1] < 2:
        return np.ones(len(probs_MC))
    ordered_MC = np.sort(probs_MC, axis=1)
    return np.asarray(1.0 - (ordered_MC[:, -1] - ordered_MC[:, -2]))


def _rarity(pool: Pool) -> Floats:
    """The expectation, over the teacher's classes, of one over the number of their labels, [M]."""
    assert pool.probs_MC is not None, "rarity needs a teacher"
    counts_C = np.bincount(pool.labels_M[pool.labeled_rows], minlength=pool.probs_MC.shape[1])
    return np.asarray(pool.probs_MC @ (1.0 / np.sqrt(1.0 + counts_C)))


# clusters


class _Typical:
    """The most typical picture of each cluster without a label, the largest clusters first (TypiClust, 2202.02794).

    Typical is what has near neighbors. The number of clusters doubles when each has a label, so that a larger batch
    contains the smaller one; the paper clusters anew for each size of a batch.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool, self._taken = pool, list(pool.labeled_rows)
        self._clusters_M = np.zeros(len(pool.labels_M), dtype=np.int64)
        self._count = 1
        self._queue: Iterator[int] = iter(())

    def next(self, is_open_M: NDArray[np.bool_]) -> tuple[int, str]:
        while True:
            for cluster in self._queue:
                if (self._clusters_M[self._taken] == cluster).any():
                    continue
                members = np.flatnonzero(self._clusters_M == cluster)
                members = members[is_open_M[members]]
                if len(members):
                    return self._most_typical(members), f"typical of a cluster of {len(members)}"
            if self._count * LEAST_MEMBERS > len(is_open_M):
                return int(is_open_M.argmax()), "every cluster has a label"
            self._count *= 2
            while self._count <= len(self._taken):
                self._count *= 2
            self._clusters_M = clustered(self._pool.features_MD, self._count, self._pool.seed)
            sizes_K = np.bincount(self._clusters_M, minlength=self._count)
            order = np.argsort(-sizes_K, kind="stable")
            self._queue = iter(order[sizes_K[order] >= LEAST_MEMBERS].tolist())

    def take(self, row: int) -> None:
        self._taken.append(row)

    def _most_typical(self, members: Rows) -> int:
        compared = members[:REFERENCES]
        density = [
            np.sort(self._pool.features_MD[rows] @ self._pool.features_MD[compared].T, axis=1)[:, -1 - NEIGHBORS : -1]
            for rows in _blocks(members)
        ]
        if not density[0].shape[1]:
            return int(members[0])
        return int(members[np.concatenate([part.mean(axis=1) for part in density]).argmax()])


def clustered(features_MD: Floats, count: int, seed: int) -> Rows:
    """The cluster of each picture, from 0, int64 [M]: k-means, fitted on the first FITTED pictures."""
    from sklearn.cluster import KMeans

    fitted = np.asarray(features_MD[:FITTED], dtype=np.float32)
    means = KMeans(n_clusters=min(count, len(fitted)), n_init=1, random_state=seed).fit(fitted)
    return np.concatenate([means.predict(features_MD[rows]) for rows in _blocks(np.arange(len(features_MD)))]).astype(
        np.int64
    )


class _Coreset:
    """The picture whose class probabilities are farthest from those of all labeled ones (PCoreSet, 2506.00910).

    Without a teacher it is `herding`.
    """

    def __init__(self, pool: Pool) -> None:
        self._first = _Herding(pool) if pool.probs_MC is None else None
        self._probs_MC = pool.probs_MC
        self._distance_M = np.full(len(pool.labels_M), np.inf)
        for row in pool.labeled_rows:
            self.take(int(row))

    def next(self, is_open_M: NDArray[np.bool_]) -> tuple[int, str]:
        if self._first is not None:
            return self._first.next(is_open_M)
        return int(np.where(is_open_M, self._distance_M, -1.0).argmax()), "unlike every label under the teacher"

    def take(self, row: int) -> None:
        if self._probs_MC is not None:
            distance_M = np.linalg.norm(self._probs_MC - self._probs_MC[row], axis=1)
            self._distance_M = np.minimum(self._distance_M, distance_M)
        elif self._first is not None:
            self._first.take(row)


def _blocks(rows: Rows) -> Iterator[Rows]:
    return (rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK))


STRATEGIES: dict[str, Strategy] = {
    "random": Strategy(start=_Random, about="uniform draws"),
    "herding": Strategy(start=_Herding, about="coverage, then also what the teacher is unsure of"),
    "typical": Strategy(start=_Typical, about="typical members of clusters"),
    "coreset": Strategy(start=_Coreset, about="coverage, then what is unlike every label under the teacher"),
}


# joint features


def joint_features(readers: list[Callable[[Rows], Floats]], n: int, dims: int) -> Floats:
    """The leading principal components of several sources' features together, float32 [n, dims], of unit length.

    Each source's features are centered and scaled to unit length first, so that sources count alike. Directions are
    learned on at most LEARNED rows; memory is bounded by n * dims numbers and a block of features.

    Args:
        readers: for each source a function of rows that returns features [rows, D].
        n: number of rows.
        dims: number of components, fewer where there are fewer.
    """
    from sklearn.utils.extmath import randomized_svd

    sample = np.arange(min(n, LEARNED))
    means = [_mean(read, sample) for read in readers]

    def units(rows: Rows) -> Floats:
        centered = (np.asarray(read(rows), dtype=np.float32) - mean for read, mean in zip(readers, means, strict=True))
        return np.concatenate([_unit(part) for part in centered], axis=1)

    directions_LD = units(sample)
    if dims < min(directions_LD.shape):
        _, _, directions_KD = randomized_svd(directions_LD, dims, n_iter=2, random_state=0)
    else:
        directions_KD = np.eye(directions_LD.shape[1])
    directions_DK = directions_KD.T.astype(np.float32)
    return np.concatenate([_unit(units(rows) @ directions_DK) for rows in _blocks(np.arange(n))])


def _mean(read: Callable[[Rows], Floats], rows: Rows) -> Floats:
    total = sum(np.asarray(read(block), dtype=np.float64).sum(axis=0) for block in _blocks(rows))
    return np.asarray(total / len(rows), dtype=np.float32)


def _unit(features_ND: Floats) -> Floats:
    lengths = np.linalg.norm(features_ND, axis=1, keepdims=True)
    return np.asarray(features_ND / np.maximum(lengths, 1e-12), dtype=np.float32)
