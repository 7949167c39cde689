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
Targets = Mapping[str, Seeds]  # by target

# a function of scores and truth, each {source: value}; None where it is undefined
Measure = Callable[[Mapping[str, float], Mapping[str, float]], float | None]

DRAWS = 10_000
FLIPS = 2**16


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Differences over the seeds of one target: mean, 95 % t-interval (unbounded for one seed), sign-flip p."""

    n: int
    mean: float
    low: float
    high: float
    p: float


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Summary over targets: mean of target means, two-level bootstrap interval, sign-flip p of the target means.

    `above` is the share of bootstrap draws over 0; `by_target` has the statistics over the seeds of each target.
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
        counts = [target.n for target in self.by_target.values()]
        return min(counts), max(counts)

    @property
    def wins(self) -> tuple[int, int]:
        """Targets with a mean over 0, and those among them whose t-interval lies over 0."""
        targets = self.by_target.values()
        return sum(target.mean > 0 for target in targets), sum(target.low > 0 for target in targets)


def sign_flip(differences: Sequence[float]) -> float:
    """Two-sided p of the sign-flip test of the mean: over all 2^n flips, at least 2 / 2^n; over FLIPS drawn, if fewer.

    The null hypothesis is that every difference is as likely as its negative (Fisher's randomization test for
    pairs). It is exact for up to 16 differences.

    Raises:
        ValueError: no differences.
    """
    from scipy.stats import permutation_test

    values = np.asarray(differences, dtype=np.float64)
    if values.size == 0:
        raise ValueError("no differences to test")
    if values.size == 1:  # scipy wants two; the two flips of one value are equally far from 0
        return 1.0
    test = permutation_test(
        (values,),
        np.mean,
        permutation_type="samples",
        n_resamples=min(2**values.size, FLIPS),
        vectorized=True,
        batch=4096,
        random_state=np.random.default_rng(0),
    )
    return float(test.pvalue)


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
    somewhat too narrow, as with every bootstrap of few units.

    Args:
        targets: T >= 1 targets, each with one or more values.
        draws: number of bootstrap draws.
        seed: seed of the generator.

    Returns:
        float64 [draws].
    """
    generator = np.random.default_rng(seed)
    counts_T = np.array([len(values) for values in targets])
    values_TN = np.zeros((len(targets), counts_T.max()))
    for row, values in zip(values_TN, targets, strict=True):
        row[: len(values)] = values
    targets_DT = generator.integers(len(targets), size=(draws, len(targets)))
    counts_DT1 = counts_T[targets_DT][..., None]
    # targets may differ in seeds: positions are drawn below the target's own count, and those past it have weight 0
    seeds_DTN = (generator.random((*targets_DT.shape, counts_T.max())) * counts_DT1).astype(np.intp)
    weights_DTN = (np.arange(counts_T.max()) < counts_DT1) / counts_DT1
    means_DT = (values_TN[targets_DT[..., None], seeds_DTN] * weights_DTN).sum(axis=2)
    return np.asarray(means_DT.mean(axis=1))


def summarize(values: Targets) -> Summary | None:
    """Summarize one quantity over targets and seeds; None where no target has a value."""
    filled = tuple((target, tuple(seeds.values())) for target, seeds in values.items() if seeds)
    return _summary(filled) if filled else None


@functools.lru_cache(maxsize=1024)  # the same contrast is in several tables and in a plot
def _summary(values: tuple[tuple[str, tuple[float, ...]], ...]) -> Summary:
    by_target = {target: paired(seeds) for target, seeds in values}
    means = [target.mean for target in by_target.values()]
    means_D = two_level([seeds for _, seeds in values])
    low, high = np.percentile(means_D, [2.5, 97.5])
    return Summary(
        mean=float(np.mean(means)),
        low=float(low),
        high=float(high),
        p=sign_flip(means),
        above=float(np.mean(means_D > 0)),
        by_target=by_target,
    )


def paired_differences(first: Targets, second: Targets) -> dict[str, dict[int, float]]:
    """First minus second, for the seeds that both have; a target without such a seed is left out.

    Rounded to 1e-9, so that the last bit of a float is never the sign of a difference.
    """
    differences = {}
    for target in sorted(first.keys() & second.keys()):
        seeds = sorted(first[target].keys() & second[target].keys())
        if seeds:
            differences[target] = {seed: round(first[target][seed] - second[target][seed], 9) for seed in seeds}
    return differences


def spearman(scores: Mapping[str, float], truth: Mapping[str, float]) -> float | None:
    """Spearman's rank correlation over the sources of `truth` (ties get their mean rank); None where it is undefined.

    Undefined: fewer than two sources, or all scores equal, or all truths equal.
    """
    from scipy.stats import spearmanr

    first, second = [scores[name] for name in truth], list(truth.values())
    if min(len(set(first)), len(set(second))) < 2:
        return None
    return float(spearmanr(first, second).statistic)


def top_sources(scores: Mapping[str, float]) -> list[str]:
    """The sources with the highest score; several where scores tie."""
    best = max(scores.values())
    return [name for name, score in scores.items() if score == best]


def regret(scores: Mapping[str, float], truth: Mapping[str, float]) -> float:
    """Truth of the best source minus that of the top-scored one; the mean over all top-scored ones where scores tie."""
    return max(truth.values()) - float(np.mean([truth[name] for name in top_sources(scores)]))


def hit_rate(scores: Mapping[str, float], truth: Mapping[str, float]) -> float:
    """1 where the top-scored source is a best one, else 0; the share of best ones where scores tie."""
    best = top_sources(truth)
    return float(np.mean([name in best for name in top_sources(scores)]))


def standardized(truth: Mapping[str, float]) -> dict[str, float]:
    """Mean 0, standard deviation 1 (of the sources as a population) within a target; all 0 where all are equal."""
    values = np.array(list(truth.values()))
    if len(set(truth.values())) < 2:
        return dict.fromkeys(truth, 0.0)
    return dict(zip(truth, ((values - values.mean()) / values.std()).tolist(), strict=True))


def static_scores(truths: Mapping[str, Mapping[str, float]], target: str) -> dict[str, float] | None:
    """Scores of the static ranker, which ignores the target: a source's mean standardized truth on the other targets.

    Args:
        truths: {target: {source: truth}}.
        target: the target to leave out.

    Returns:
        A score for every source of `target`, 0 (an average source) for a source of no other target; None where there
        is no other target.
    """
    other_truths = [standardized(truth) for name, truth in truths.items() if name != target]
    if not other_truths:
        return None
    by_source = {source: [truth[source] for truth in other_truths if source in truth] for source in truths[target]}
    return {source: float(np.mean(values)) if values else 0.0 for source, values in by_source.items()}
