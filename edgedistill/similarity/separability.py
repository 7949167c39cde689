"""Metrics of how well a source's features separate the target's classes: distances, neighbors and linear heads.

Every metric has one signature, numpy in and a float out, higher is more similar; its options are keyword-only:

    METRICS[name](features_ND, probs_NK, labels_N, **options) -> float

N probe images, D features (the input of the source's last linear layer), K classes of the source, C target classes
(those among the labels), E dimensions of a reference. The metrics based on likelihoods are in `likelihood`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt

from edgedistill.agent import metrics
from edgedistill.errors import InputError

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
Rows = NDArray[np.intp]
Compat = Literal["exact", "dbolya"]
Folds = Annotated[int, Field(ge=2)]
MAX_MAGNITUDE = 1e60  # beyond any net's output; squares and their products still fit a float


def parc(
    features_ND: Floats,
    probs_NK: Floats | None,
    labels_N: Ints,
    *,
    dims: PositiveInt | None = None,
    compat: Compat = "exact",
) -> float:
    """PARC: rank correlation between distances of features and distances of labels, times 100.

    Bolya, Mittapalli, Hoffman, "Scalable Diverse Model Selection for Accessible Transfer Learning", NeurIPS 2021.
    Label distances of one-hot rows take two values; "exact" keeps those ties exact; "dbolya" reproduces the
    rounding errors of the authors' code, which break them (at 7 classes 60.3 becomes 42-45 on separable data) and
    depend on the processor's matrix kernels.

    Args:
        features_ND: [N, D].
        probs_NK: not used.
        labels_N: [N], two classes at least.
        dims: reduce the features to this many dimensions by PCA first (unless there are fewer images or features).
        compat: label distances: "exact", or "dbolya" with the rounding errors of the authors' code.

    Raises:
        InputError: the probe holds a single class, or the features are not finite numbers.
    """
    features_ND, index_N = checked("parc", features_ND, labels_N)
    feature_distances = _distances(features_ND, dims)
    if compat == "exact":
        label_distances = _upper_triangle(index_N[:, None] != index_N[None, :]).astype(np.float64)
    else:
        label_distances = _upper_triangle(1.0 - np.asarray(np.corrcoef(one_hot(index_N))))
    return 100.0 * _spearman(feature_distances, label_distances)


def parc_ceiling(labels_N: Ints) -> float:
    """The PARC of perfectly separated classes: 100 sqrt(3 q (1 - q)), q = share of pairs of one class.

    Label distances have two tied groups, so even a perfect ranking of feature distances stays below 100.
    """
    counts, n = np.unique(labels_N, return_counts=True)[1], len(labels_N)
    same = float((counts * (counts - 1)).sum()) / (n * (n - 1))
    return 100.0 * float(np.sqrt(3.0 * same * (1.0 - same)))


def rsa(
    features_ND: Floats,
    probs_NK: Floats | None,
    labels_N: Ints,
    reference_NE: Floats | None = None,
    *,
    dims: PositiveInt | None = None,
) -> float:
    """RSA: rank correlation of a source's feature distances with those of a reference net, times 100.

    The reference is the mean of all sources' held-out probe scores.

    Dwivedi, Roig, "Representation Similarity Analysis for Efficient Task Taxonomy & Transfer Learning", CVPR 2019,
    with distances 1 - Pearson of rows standardized by feature. The second net is trained on the target. Before
    there is one, `similarity.weigh` passes the mean over all sources of `held_out_scores` as the reference.

    Args:
        features_ND: [N, D].
        probs_NK: not used.
        labels_N: [N], two classes at least; not used if there is a reference.
        reference_NE: features of the net trained on the target, [N, E]; without it the labels are the reference and
            RSA is PARC (which is how its authors introduce PARC).
        dims: reduce features and reference to this many dimensions by PCA first.

    Raises:
        InputError: the probe holds a single class, or the features are not finite numbers.
    """
    features_ND, _ = checked("rsa", features_ND, labels_N)
    if reference_NE is None:
        return parc(features_ND, probs_NK, labels_N, dims=dims)
    reference_NE, _ = checked("rsa", reference_NE, labels_N)
    return 100.0 * _spearman(_distances(features_ND, dims), _distances(reference_NE, dims))


def cka(features_ND: Floats, probs_NK: Floats | None, labels_N: Ints, *, debiased: bool = True) -> float:
    """Linear CKA of the features with the one-hot labels: <K, L> / (|K| |L|) of their centered Gram matrices.

    Kornblith, Norouzi, Lee, Hinton, "Similarity of Neural Network Representations Revisited", ICML 2019. With more
    features than images this is far above 0 for noise; `debiased` estimates the three products by the unbiased HSIC_1
    (Song et al. 2012; Nguyen, Raghu, Kornblith, ICLR 2021, eq. 3), which is 0 on average for noise.

    Args:
        features_ND: [N, D].
        probs_NK: not used.
        labels_N: [N], two classes at least.
        debiased: unbiased products, in [-1, 1]; else the plain ones, in [0, 1].

    Raises:
        InputError: the probe holds a single class, the features are not finite numbers, or there are fewer than four
            images and `debiased` needs them.
    """
    features_ND, index_N = checked("cka", features_ND, labels_N)
    if debiased and len(index_N) < 4:
        raise InputError(
            f"cka: {len(index_N)} labeled images, and its unbiased estimate needs four",
            "label more images, or set debiased: false",
        )
    centered_ND = np.where(_varying(features_ND), features_ND - features_ND.mean(axis=0), 0.0)
    center = _u_centered if debiased else _centered
    first, second = (
        center(centered_ND @ centered_ND.T),
        center((index_N[:, None] == index_N[None, :]).astype(np.float64)),
    )
    lengths = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(np.clip((first * second).sum() / lengths, -1.0, 1.0)) if lengths > 0 else 0.0


def knn(features_ND: Floats, probs_NK: Floats | None, labels_N: Ints, *, k: PositiveInt = 5) -> float:
    """Leave-one-out k nearest neighbors in cosine distance: balanced accuracy, 0 at chance and 1 when perfect.

    As in Bolya et al. 2021, table 1 (there: k = 1, Euclidean, plain accuracy). Neighbors at equal distance share
    the remaining votes; ties between classes are broken by similarity.

    Args:
        features_ND: [N, D].
        probs_NK: not used.
        labels_N: [N], two images a class at least.
        k: neighbors; limited to the size of the smallest class less one, or larger classes would outvote it.

    Raises:
        InputError: the probe holds a single class or a class with one image only, or the features are not finite.
    """
    features_ND, index_N = checked("knn", features_ND, labels_N)
    classes = _pairs_in_every_class("knn", index_N)
    similar_NN = _cosines(features_ND)
    np.fill_diagonal(similar_NN, -np.inf)
    k = min(k, int(np.bincount(index_N).min()) - 1)
    last_N1 = np.partition(similar_NN, -k, axis=1)[:, [-k]]
    closer, tied = similar_NN > last_N1 + 1e-12, np.abs(similar_NN - last_N1) <= 1e-12
    if (closer | tied).sum() == tied.size - len(tied):
        return 0.0  # all images are equal: every other image is a nearest neighbor
    share_NN = closer + tied * ((k - closer.sum(axis=1)) / tied.sum(axis=1))[:, None]
    similar_NN[np.diag_indices_from(similar_NN)] = 0.0
    votes_NC = ((share_NN * (1.0 + similar_NN / (4 * k))) @ one_hot(index_N)).round(9)
    # classes that still tie share the image: the order of the classes must not decide
    first_NC = votes_NC == votes_NC.max(axis=1, keepdims=True)
    right_N = first_NC[np.arange(len(index_N)), index_N] / first_NC.sum(axis=1)
    return over_chance(float(np.mean([right_N[index_N == label].mean() for label in range(classes)])), classes)


def probe(
    features_ND: Floats,
    probs_NK: Floats | None,
    labels_N: Ints,
    *,
    folds: Folds = 5,
    repeats: PositiveInt = 5,
    l2: PositiveFloat = 1.0,
    seed: int = 0,
) -> float:
    """Linear probe: k-fold balanced accuracy of a ridge classifier, 0 at chance and 1 when perfect.

    Below chance it is negative. Unlike a rank correlation of distances it is not misled by an untrained net whose few
    effective dimensions correlate with a nuisance that correlates with the label.

    Args:
        features_ND: [N, D].
        probs_NK: not used.
        labels_N: [N]; a class with fewer images than `folds` lowers the number of folds to its size.
        folds: number of stratified folds, two at least.
        repeats: number of random divisions into folds; the score is the mean.
        l2: ridge penalty, in units of the number of features.
        seed: seed of the divisions.

    Raises:
        InputError: the probe holds a single class or a class with one image only, or the features are not finite.
    """
    from sklearn.model_selection import RepeatedStratifiedKFold

    features_ND, index_N = checked("probe", features_ND, labels_N)
    classes = _pairs_in_every_class("probe", index_N)
    targets_NC = one_hot(index_N)
    inverse_NN = np.linalg.inv(_ridge_system(features_ND, index_N, l2))
    solved_NC = inverse_NN @ targets_NC
    cuts = RepeatedStratifiedKFold(
        n_splits=min(folds, int(np.bincount(index_N).min())), n_repeats=repeats, random_state=seed
    )
    shares = []
    for _, fold_rows in cuts.split(targets_NC, index_N):
        # predictions for the fold by a ridge regression without it, by the inverse of a partitioned matrix:
        # the full system is solved once, and each fold costs a system of its own size
        scores = targets_NC[fold_rows] - np.linalg.solve(inverse_NN[np.ix_(fold_rows, fold_rows)], solved_NC[fold_rows])
        # rounded: without information all classes tie, and the rounding errors of y - (y - 0) depend on the label
        shares.append(metrics.balanced(index_N[fold_rows], scores.round(9).argmax(axis=1))[0])
    return over_chance(float(np.mean(shares)), classes)


def held_out_scores(features_ND: Floats, labels_N: Ints, l2: float = 1.0) -> Floats:
    """Leave-one-out scores of a linear head: ridge scores of each image from all others, [N, D] -> [N, C].

    In closed form: y - (M^-1 y) / diag(M^-1), M the regularized Gram matrix.

    Raises:
        InputError: the probe holds a single class, or the features are not finite numbers.
    """
    features_ND, index_N = checked("held-out scores", features_ND, labels_N)
    inverse_NN = np.linalg.inv(_ridge_system(features_ND, index_N, l2))
    targets_NC = one_hot(index_N)
    return np.asarray(targets_NC - inverse_NN @ targets_NC / np.diag(inverse_NN)[:, None])


def checked(metric: str, features_ND: Floats, labels_N: Ints) -> tuple[Floats, Ints]:
    """Validate features, as float64, and labels, as class indices 0..C-1 without gaps.

    Raises:
        InputError: features and labels differ in length or are not finite, or all labels are of one class.
    """
    features_ND, labels_N = np.asarray(features_ND, dtype=np.float64), np.asarray(labels_N)
    if features_ND.ndim != 2 or labels_N.shape != features_ND.shape[:1] or not features_ND.size:
        raise InputError(
            f"{metric}: features {features_ND.shape} and labels {labels_N.shape} do not fit",
            "give one row of features and one label an image",
        )
    if not np.abs(features_ND).max() < MAX_MAGNITUDE:
        raise InputError(f"{metric}: the features hold values that are not finite", "leave that source out")
    classes, index_N = np.unique(labels_N, return_inverse=True)
    if len(classes) < 2:
        raise InputError(f"{metric}: the probe holds a single class", "label images of a second class")
    return features_ND, index_N.astype(np.int64)


def one_hot(index_N: Ints) -> Floats:
    """One-hot rows of class indices: [N] -> [N, C]."""
    return np.asarray(np.eye(int(index_N.max()) + 1)[index_N])


def over_chance(share: float, classes: int) -> float:
    """Rescale a balanced accuracy over `classes` classes so that chance is 0 and perfect stays 1."""
    chance = 1.0 / classes
    return float((share - chance) / (1.0 - chance))


def reduced(features_ND: Floats, dims: int | None) -> Floats:
    """The first `dims` principal components; all features if there are no more images or features than that."""
    if dims is None or dims >= min(features_ND.shape):
        return features_ND
    from sklearn.decomposition import PCA

    # the arguments of the authors' code (dbolya/parc), so that scores are comparable
    reducer = PCA(n_components=dims, svd_solver="randomized", random_state=1919, iterated_power=1)
    with np.errstate(divide="ignore", invalid="ignore"):  # shares of a variance of 0, if all images are equal
        return np.asarray(reducer.fit_transform(features_ND))


def standardized(features_ND: Floats) -> Floats:
    """Scale to mean 0 and deviation 1 per feature; a constant feature becomes 0."""
    varies_D = _varying(features_ND)
    deviation_D = np.where(varies_D, features_ND.std(axis=0), 1.0)
    return np.asarray(np.where(varies_D, (features_ND - features_ND.mean(axis=0)) / deviation_D, 0.0))


def _varying(features_ND: Floats) -> NDArray[np.bool_]:
    """Which features vary beyond rounding error: the mean of equal numbers may differ from them in the last bit."""
    return np.asarray(features_ND.std(axis=0) > 1e-14 * np.abs(features_ND).max(axis=0))


def _pairs_in_every_class(metric: str, index_N: Ints) -> int:
    """Number of classes; each needs two images, one to train on and one to predict."""
    if np.bincount(index_N).min() < 2:
        raise InputError(f"{metric}: a class has a single labeled image", "give two labels a class at least")
    return int(index_N.max()) + 1


def _ridge_system(features_ND: Floats, index_N: Ints, l2: float) -> Floats:
    """Matrix of a ridge regression in dual form, [N, N]: there are fewer labels than features."""
    counts_C = np.bincount(index_N)
    standard_ND = standardized(features_ND)
    gram_NN = standard_ND @ standard_ND.T / features_ND.shape[1] + 1.0  # the 1 is an intercept
    # classes have equal weight at any size; with a vanishing penalty the matrix would be singular
    penalty_N = max(l2, 1e-6) * counts_C[index_N] * len(counts_C) / len(index_N)
    return np.asarray(gram_NN + np.diag(penalty_N))


def _distances(features_ND: Floats, dims: int | None) -> Floats:
    """1 - Pearson of every pair of rows, standardized by feature: the strict upper triangle, flat.

    Rounded, so that equal distances between copies of two images are not ranked by their last bits.
    """
    return np.asarray(_upper_triangle(1.0 - _row_correlation(standardized(reduced(features_ND, dims)))).round(12))


def _upper_triangle(square_NN: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(square_NN[np.triu(np.ones(square_NN.shape, dtype=bool), k=1)])


def _row_correlation(rows_ND: Floats) -> Floats:
    """Pearson correlation of every pair of rows, [N, N]; a constant row correlates with nothing (0)."""
    return _cosines(rows_ND - rows_ND.mean(axis=1, keepdims=True))


def _cosines(rows_ND: Floats) -> Floats:
    """Cosine of every pair of rows, [N, N]; a row of zeros is orthogonal to all."""
    length_N1 = np.linalg.norm(rows_ND, axis=1, keepdims=True)
    unit_ND = rows_ND / np.where(length_N1 > 0, length_N1, 1.0)
    return np.asarray(np.clip(unit_ND @ unit_ND.T, -1.0, 1.0))


def _spearman(first: Floats, second: Floats) -> float:
    from scipy.stats import rankdata

    return float(_row_correlation(np.stack([rankdata(first), rankdata(second)]))[0, 1])


def _centered(gram_NN: Floats) -> Floats:
    means_N = gram_NN.mean(axis=0)
    return np.asarray(gram_NN - means_N[:, None] - means_N[None, :] + means_N.mean())


def _u_centered(gram_NN: Floats) -> Floats:
    """U-centered Gram matrix: sums of products are unbiased, the diagonal is ignored (Szekely, Rizzo 2014)."""
    n = len(gram_NN)
    hollow_NN = gram_NN - np.diag(np.diag(gram_NN))
    means_N = hollow_NN.sum(axis=0) / (n - 2)
    centered_NN = hollow_NN - means_N[:, None] - means_N[None, :] + means_N.sum() / (n - 1)
    np.fill_diagonal(centered_NN, 0.0)
    return np.asarray(centered_NN)
