"""The statistics of the suite: pure functions of numbers. Differences and regrets are in points (hundredths).

Two levels: seeds within a target (paired differences, t-interval, exact sign-flip test) and targets (two-level
bootstrap of the mean of target means, sign-flip test of the target means).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Seeds = Mapping[int, float]  # one value a seed
Targets = Mapping[str, Seeds]  # and that for every target

# of (scores, truth), each source -> value; None where it is undefined
Measure = Callable[[Mapping[str, float], Mapping[str, float]], float | None]

DRAWS = 10_000


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Differences over the seeds of one target: mean, 95 % t-interval (unbounded for one seed), sign-flip p."""

    n: int
    mean: float
    low: float
    high: float
    p: float


@dataclass(frozen=True, kw_only=True)
class Across:
    """Over targets: mean of target means, two-level bootstrap interval, sign-flip p of the target means.

    `above` is the share of bootstrap draws over 0; `by_target` holds what the seeds of each target say.
    """

    mean: float
    low: float
    high: float
    p: float
    above: float
    by_target: dict[str, Paired]

    @property
    def seeds(self) -> tuple[int, int]:
        """Fewest and most seeds a target."""
        counts = [one.n for one in self.by_target.values()]
        return min(counts), max(counts)

    @property
    def wins(self) -> tuple[int, int]:
        """Targets with a mean over 0, and those among them whose t-interval lies over 0."""
        return sum(one.mean > 0 for one in self.by_target.values()), sum(one.low > 0 for one in self.by_target.values())


def sign_flip(differences: Sequence[float]) -> float:
    """Two-sided p of the exact sign-flip test of the mean: all 2^n flips, so at least 2 / 2^n.

    The null hypothesis is that every difference is as likely as its negative (Fisher's randomisation test for
    pairs). Memory is bounded; time doubles with every value (n = 20: a million flips).

    Raises:
        ValueError: no differences.
    """
    from scipy.stats import permutation_test

    values = np.asarray(differences, dtype=np.float64)
    if values.size == 0:
        raise ValueError("no differences to test")
    if values.size == 1:  # scipy wants two; the two flips of one value are equally far from 0
        return 1.0
    found = permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=2**values.size, vectorized=True, batch=4096
    )
    return float(found.pvalue)


def paired(differences: Sequence[float]) -> Paired:
    """Mean, 95 % t-interval with n - 1 degrees of freedom and sign-flip p of the differences of one target.

    Raises:
        ValueError: no differences.
    """
    from scipy.stats import t

    values, p = np.asarray(differences, dtype=np.float64), sign_flip(differences)
    n, mean = values.size, float(values.mean())
    if n == 1:
        return Paired(n=1, mean=mean, low=-math.inf, high=math.inf, p=p)
    half = float(t.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n))
    return Paired(n=n, mean=mean, low=mean - half, high=mean + half, p=p)


def two_level(targets: Sequence[Sequence[float]], draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Bootstrap draws of the mean of target means: targets with replacement, then seeds within each target drawn.

    A target drawn twice has its seeds drawn twice. With few targets the percentile interval of these draws is
    somewhat too narrow: that is a property of every bootstrap of few units.

    Args:
        targets: T >= 1 targets, each with one or more values.
        draws: how many.
        seed: of the generator.

    Returns:
        float64 [draws].
    """
    generator = np.random.default_rng(seed)
    counts_T = np.array([len(values) for values in targets])
    values_TN = np.zeros((len(targets), counts_T.max()))
    for row, values in zip(values_TN, targets, strict=True):
        row[: len(values)] = values
    at_DT = generator.integers(len(targets), size=(draws, len(targets)))
    counts_DT1 = counts_T[at_DT][..., None]
    # targets may differ in seeds: a position is drawn below each one's own count, and those past it weigh nothing
    at_DTN = (generator.random((*at_DT.shape, counts_T.max())) * counts_DT1).astype(np.intp)
    weights_DTN = (np.arange(counts_T.max()) < counts_DT1) / counts_DT1
    means_DT = (values_TN[at_DT[..., None], at_DTN] * weights_DTN).sum(axis=2)
    return np.asarray(means_DT.mean(axis=1))


def across(values: Targets) -> Across | None:
    """Everything that is said of one quantity over targets and seeds; None where no target has a value."""
    filled = tuple((target, tuple(seeds.values())) for target, seeds in values.items() if seeds)
    return _summary(filled) if filled else None


@functools.lru_cache(maxsize=1024)  # the same contrast stands in several tables and in a plot
def _summary(values: tuple[tuple[str, tuple[float, ...]], ...]) -> Across:
    by_target = {target: paired(seeds) for target, seeds in values}
    means = [one.mean for one in by_target.values()]
    drawn = two_level([seeds for _, seeds in values])
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Across(
        mean=float(np.mean(means)),
        low=float(low),
        high=float(high),
        p=sign_flip(means),
        above=float(np.mean(drawn > 0)),
        by_target=by_target,
    )


def minus(first: Targets, second: Targets) -> dict[str, dict[int, float]]:
    """First minus second, on the seeds that both have; a target without any such seed is left out.

    Rounded to 1e-9, so that the last bit of a float is never the sign of a difference.
    """
    found = {}
    for target in sorted(first.keys() & second.keys()):
        seeds = sorted(first[target].keys() & second[target].keys())
        if seeds:
            found[target] = {seed: round(first[target][seed] - second[target][seed], 9) for seed in seeds}
    return found


def spearman(scores: Mapping[str, float], truth: Mapping[str, float]) -> float | None:
    """Spearman's rank correlation over the sources of `truth` (ties get their mean rank); None where it is undefined.

    Undefined: fewer than two sources, or all scores equal, or all truths equal.
    """
    from scipy.stats import spearmanr

    first, second = [scores[name] for name in truth], list(truth.values())
    if min(len(set(first)), len(set(second))) < 2:
        return None
    return float(spearmanr(first, second).statistic)


def chosen(scores: Mapping[str, float]) -> list[str]:
    """The sources with the highest score: more than one where they tie."""
    best = max(scores.values())
    return [name for name, score in scores.items() if score == best]


def regret(scores: Mapping[str, float], truth: Mapping[str, float]) -> float:
    """Truth of the best source minus truth of the chosen one; the mean over those chosen where scores tie."""
    return max(truth.values()) - float(np.mean([truth[name] for name in chosen(scores)]))


def hit(scores: Mapping[str, float], truth: Mapping[str, float]) -> float:
    """1 where the chosen source is a best one, 0 where not; a share where scores tie."""
    best = chosen(truth)
    return float(np.mean([name in best for name in chosen(scores)]))


def standardised(truth: Mapping[str, float]) -> dict[str, float]:
    """Mean 0, standard deviation 1 (of the sources as a population) within a target; all 0 where all are equal."""
    values = np.array(list(truth.values()))
    if len(set(truth.values())) < 2:
        return dict.fromkeys(truth, 0.0)
    return dict(zip(truth, ((values - values.mean()) / values.std()).tolist(), strict=True))


def static(truths: Mapping[str, Mapping[str, float]], target: str) -> dict[str, float] | None:
    """The ranker that never looks at the target: a source's mean standardised truth on the other targets.

    Args:
        truths: {target: {source: truth}}.
        target: the one left out.

    Returns:
        A score for every source of `target`, 0 (an average source) for one seen nowhere else; None where there is
        no other target.
    """
    others = [standardised(truth) for name, truth in truths.items() if name != target]
    if not others:
        return None
    seen = {source: [truth[source] for truth in others if source in truth] for source in truths[target]}
    return {source: float(np.mean(values)) if values else 0.0 for source, values in seen.items()}
