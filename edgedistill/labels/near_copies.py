"""Near-copies: one picture twice with other pixels, after compression, resizing, a small crop or another brightness.

Three stages, each for the few pairs that the stage before leaves:

1. Hashes of 64 bits find pairs that may be alike: pHash (imagehash), and the signs of random projections of source
   features, where there are any.
2. Small descriptors without what many pictures of the set share drop most of these pairs.
3. The pictures of a pair are aligned and compared pixel by pixel, again without what many pictures share.

So pictures that look alike because the entire set does (X-rays of chests, sheets of steel, solar cells of one layout)
are no near-copies, and one of them compressed anew is. Mirrored and turned copies are not searched for.

N images; M of them with different pixels, numbered from 0; P pairs; Q pixels; K directions; B pairs of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from edgedistill.labels.units import merged

Floats = NDArray[np.floating]
Rows = NDArray[np.int64]

VERSION = 1  # of what is taken for a copy
MAX_BITS = 10  # largest Hamming distance of the hashes of a pair, of 64
MAX_PER_PICTURE = 64  # pairs of one picture that leave stage 1, those of the nearest hashes
MIN_CORRELATION = 0.4  # of the descriptors of a pair
MAX_ALIGNED = 40_000  # pairs that are aligned, those of the most similar descriptors
MIN_SCORE = 0.9  # share of what sets a picture apart that its copy explains
MAX_COLOR = 12.0  # root mean square of the difference in color, of 255 levels
FLAT = 0.75  # gray levels: a picture with less detail (standard deviation) has nothing to compare
SIDE, SMALL = 64, 32  # sides of the gray pictures that are aligned, and of those that are described
MARGIN = 3  # pixels at the border that a crop may have cut off
SAMPLE = 512  # pictures from which shared directions are learned
SHARED = 1 / 16  # most directions that count as shared, a share of the sample
DESCRIBED = 128  # directions of a descriptor
LEAST_SPREAD, SPREAD = 12, 1 / 32  # pictures, and share of the sample, that have a part in a shared direction
CHUNK = 256  # pictures or pairs
BLOCK = 64  # pictures whose hashes are compared with all
WORKERS = 4  # bounds the memory on machines of many cores


@dataclass(frozen=True, eq=False, kw_only=True)
class NearCopies:
    """The near-copies among N images.

    Attributes:
        units_N: number of each image's set of copies, exact copies included, from 0, int64 [N].
        pairs_P2: rows of the images of each pair, int64 [P, 2], most similar first; of exact copies the first one.
        scores_P: share of what sets a picture apart that its copy explains; 1 at most.
        skipped: pairs that may be near-copies and were not compared, because too many look alike.
    """

    units_N: Rows
    pairs_P2: Rows
    scores_P: Floats
    skipped: int


def near_copies(images_NHWC: np.ndarray, hashes: np.ndarray, codes: Sequence[NDArray[np.uint64]] = ()) -> NearCopies:
    """Find the images that are near-copies of each other.

    Args:
        images_NHWC: squares, uint8 [N, px, px, 3]; a memory map is read in chunks.
        hashes: hash of each image's pixels, [N]; of images with equal hashes the first is compared.
        codes: further hashes of 64 bits, each uint64 [N], as `sign_codes` makes them of a source's features. They find
            pairs that pHash misses; the pixels decide about those, too.
    """
    _, first, picture_N = np.unique(hashes, return_index=True, return_inverse=True)
    views = _Views(images_NHWC=images_NHWC, rows_M=np.sort(first).astype(np.int64))
    described = _described(views)
    pairs_P2, skipped = _alike([described.hashes_M, *(codes_N[views.rows_M] for codes_N in codes)], described)
    scores_P = _scores(views, pairs_P2)
    order = np.argsort(-scores_P, kind="stable")
    order = order[scores_P[order] >= MIN_SCORE]
    copies_P2 = views.rows_M[pairs_P2[order]]
    units_N = merged([picture_N.ravel(), _joined(copies_P2, len(images_NHWC))], len(images_NHWC))
    return NearCopies(units_N=units_N, pairs_P2=copies_P2, scores_P=scores_P[order], skipped=skipped)


def sign_codes(features: Sequence[np.ndarray]) -> NDArray[np.uint64]:
    """The signs of 64 random projections of centered features, uint64 [N] (Charikar 2002, SimHash).

    Two images whose features have an angle of a radians differ in 64 a / pi bits on average.

    Args:
        features: one or more arrays [n, D], one below the other N images; memory maps are read in chunks.
    """
    projections_DK = np.random.default_rng(0).standard_normal((features[0].shape[1], 64)).astype(np.float32)
    projected = [
        np.asarray(part[start : start + CHUNK], dtype=np.float32) @ projections_DK
        for part in features
        for start in range(0, len(part), CHUNK)
    ]
    projected_NK = np.concatenate(projected)
    return np.packbits(projected_NK > projected_NK.mean(axis=0), axis=1).view(np.uint64).ravel()


def _joined(pairs_P2: Rows, n: int) -> Rows:
    """The partition of n images by pairs, int64 [n]."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs_P2), dtype=np.int8), (pairs_P2[:, 0], pairs_P2[:, 1])), shape=(n, n))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


# the pictures


@dataclass(frozen=True, eq=False, kw_only=True)
class _Views:
    """The pictures to compare: rows of the squares."""

    images_NHWC: np.ndarray
    rows_M: Rows

    def grays(self, pictures: Rows) -> list[Image.Image]:
        """Gray pictures of SIDE pixels."""
        return [self._resized(picture, SIDE).convert("L") for picture in pictures]

    def colors(self, pictures: Rows) -> Floats:
        """The colors of small pictures without their brightness, float32 [B, 8, 8, 3]."""
        small = np.stack([np.asarray(self._resized(picture, 8), dtype=np.float32) for picture in pictures])
        return np.asarray(small - small.mean(axis=3, keepdims=True))

    def _resized(self, picture: int, px: int) -> Image.Image:
        square = Image.fromarray(np.asarray(self.images_NHWC[self.rows_M[picture]]))
        return square.resize((px, px), Image.Resampling.BILINEAR)


def _details(grays: Sequence[Image.Image]) -> Floats:
    """What is between one pixel and a tenth of the side in size, float32 [B, SIDE, SIDE]."""
    gray_BHW = np.stack([np.asarray(gray, dtype=np.float32) for gray in grays])
    return np.asarray(gaussian_filter(gray_BHW, (0, 0.7, 0.7)) - gaussian_filter(gray_BHW, (0, 3.0, 3.0)))


def _small_details(grays: Sequence[Image.Image]) -> Floats:
    """Coarser details, float32 [B, SMALL * SMALL]."""
    small = [gray.resize((SMALL, SMALL), Image.Resampling.BILINEAR) for gray in grays]
    gray_BHW = np.stack([np.asarray(gray, dtype=np.float32) for gray in small])
    detail_BHW = gaussian_filter(gray_BHW, (0, 0.7, 0.7)) - gaussian_filter(gray_BHW, (0, 4.0, 4.0))
    return np.asarray(detail_BHW.reshape(len(detail_BHW), -1))


def _inner(pictures_BHW: Floats) -> Floats:
    """The pixels inside the margin, [B, Q]."""
    return pictures_BHW[:, MARGIN:-MARGIN, MARGIN:-MARGIN].reshape(len(pictures_BHW), -1)


def _directions(sample_BQ: Floats, most: int) -> tuple[Floats, Rows]:
    """The leading principal directions of a sample [K, Q], not centered, and which of the first ones are shared.

    A direction is shared if many pictures have a part in it, by the participation ratio of their coefficients. One
    picture with a few copies has a direction of its own, which must not be removed.
    """
    values, vectors_BK = np.linalg.eigh((sample_BQ @ sample_BQ.T).astype(np.float64))
    order = [k for k in np.argsort(-values)[:most] if values[k] > 1e-9 * max(values[-1], 1e-9)]
    coefficients_BK = vectors_BK[:, order]
    directions_KQ = (coefficients_BK.T @ sample_BQ) / np.sqrt(values[order])[:, None]
    pictures_K = 1.0 / (coefficients_BK**4).sum(axis=0)
    most_shared = int(SHARED * len(sample_BQ))
    is_shared = pictures_K[:most_shared] >= max(LEAST_SPREAD, SPREAD * len(sample_BQ))
    return directions_KQ.astype(np.float32), np.flatnonzero(is_shared)


# stages 1 and 2


@dataclass(frozen=True, eq=False, kw_only=True)
class _Described:
    """pHashes, uint64 [M], descriptors of unit length, float32 [M, K], and whether a picture has details, bool [M]."""

    hashes_M: NDArray[np.uint64]
    descriptors_MK: Floats
    has_detail_M: NDArray[np.bool_]


def _sample(n: int) -> Rows:
    return np.sort(np.random.default_rng(0).permutation(n)[:SAMPLE])


def _described(views: _Views) -> _Described:
    n = len(views.rows_M)
    sample_BQ = _small_details(views.grays(_sample(n)))
    directions_KQ, shared = _directions(sample_BQ, most=int(SHARED * SAMPLE) + DESCRIBED)
    own_KQ = np.delete(directions_KQ, shared, axis=0)

    def describe(start: int) -> tuple[NDArray[np.uint64], Floats, NDArray[np.bool_]]:
        grays = views.grays(np.arange(start, min(start + CHUNK, n)))
        hashes = [np.packbits(imagehash.phash(gray).hash).view(np.uint64)[0] for gray in grays]
        descriptors = _small_details(grays) @ own_KQ.T
        lengths = np.linalg.norm(descriptors, axis=1, keepdims=True)
        units = descriptors / np.maximum(lengths, 1e-6)
        return np.array(hashes, dtype=np.uint64), units, _details(grays).std(axis=(1, 2)) >= FLAT

    with ThreadPoolExecutor(WORKERS) as pool:
        parts = list(pool.map(describe, range(0, n, CHUNK)))
    hashes_M, descriptors_MK, has_detail_M = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return _Described(hashes_M=hashes_M, descriptors_MK=descriptors_MK, has_detail_M=has_detail_M)


def _alike(codes: Sequence[NDArray[np.uint64]], described: _Described) -> tuple[Rows, int]:
    """The pairs that stages 1 and 2 leave, [P, 2], most similar first, and the number beyond MAX_ALIGNED."""
    n, descriptors_MK = len(described.hashes_M), described.descriptors_MK
    pictures = np.flatnonzero(described.has_detail_M)

    def block(start: int) -> tuple[Rows, Floats]:
        pairs = [pictures[_near(hashes_M[pictures], start)] for hashes_M in codes]
        keys = np.unique(np.concatenate([pair[:, 0] * n + pair[:, 1] for pair in pairs]))
        pairs_P2 = np.stack([keys // n, keys % n], axis=1)
        correlation_P = np.einsum("pk,pk->p", descriptors_MK[pairs_P2[:, 0]], descriptors_MK[pairs_P2[:, 1]])
        is_alike = correlation_P >= MIN_CORRELATION
        return pairs_P2[is_alike], correlation_P[is_alike]

    with ThreadPoolExecutor(WORKERS) as pool:
        parts = list(pool.map(block, range(0, len(pictures), BLOCK)))
    pairs_P2 = np.concatenate([np.empty((0, 2), dtype=np.int64), *(pairs for pairs, _ in parts)])
    order = np.argsort(-np.concatenate([np.empty(0), *(correlations for _, correlations in parts)]), kind="stable")
    return pairs_P2[order[:MAX_ALIGNED]], max(0, len(order) - MAX_ALIGNED)


def _near(hashes_M: NDArray[np.uint64], start: int) -> Rows:
    """Pairs of one of BLOCK pictures from `start` on and a later one, hashes at most MAX_BITS apart, [P, 2].

    Every hash is compared with every other one: for 100,000 pictures that are 5e9 exclusive ors, a few seconds.
    """
    own, later = hashes_M[start : start + BLOCK, None], hashes_M[start:]
    tiles = [np.bitwise_count(own ^ later[None, column : column + 4096]) for column in range(0, len(later), 4096)]
    distances = np.concatenate(tiles, axis=1)
    distances[np.tril_indices(len(own), m=distances.shape[1])] = 64
    is_near = distances <= MAX_BITS
    for row in np.flatnonzero(is_near.sum(axis=1) > MAX_PER_PICTURE):
        nearest = np.argsort(distances[row], kind="stable")[:MAX_PER_PICTURE]
        is_near[row] = False
        is_near[row, nearest] = True
    return np.argwhere(is_near) + start


# stage 3


def _scores(views: _Views, pairs_P2: Rows) -> Floats:
    """Share of what sets each pair's second picture apart that the first one explains, [P]; -1 for other colors."""
    if not len(pairs_P2):
        return np.empty(0)
    sample_BQ = _inner(_details(views.grays(_sample(len(views.rows_M)))))
    directions_KQ, shared = _directions(sample_BQ, most=int(SHARED * SAMPLE))

    def score(start: int) -> Floats:
        first, second = pairs_P2[start : start + CHUNK].T
        details = (_details(views.grays(first)), _details(views.grays(second)))
        scores_B = _explained(*details, shared_KQ=directions_KQ[shared])
        color_B = np.sqrt(((views.colors(first) - views.colors(second)) ** 2).mean(axis=(1, 2, 3)))
        return np.where(color_B <= MAX_COLOR, scores_B, -1.0)

    with ThreadPoolExecutor(WORKERS) as pool:
        return np.concatenate(list(pool.map(score, range(0, len(pairs_P2), CHUNK))))


def _explained(first_BHW: Floats, second_BHW: Floats, shared_KQ: Floats) -> Floats:
    """1 - the energy of what is left of the second picture without the first, as a share of their own energy, [B].

    Both are taken without the shared directions. The first is moved, stretched along both axes and scaled in
    brightness to fit the second.
    """
    fitted_BQ = _inner(_moved(first_BHW, _alignment(first_BHW, second_BHW)))
    second_BQ = _inner(second_BHW)
    gain_B = (fitted_BQ * second_BQ).sum(axis=1) / np.maximum((fitted_BQ**2).sum(axis=1), 1e-9)

    def energy(pictures_BQ: Floats) -> Floats:
        return np.asarray((pictures_BQ**2).sum(axis=1) - ((pictures_BQ @ shared_KQ.T) ** 2).sum(axis=1))

    own_B = np.minimum(energy(second_BQ), gain_B**2 * energy(_inner(first_BHW)))
    scores_B = 1.0 - energy(np.asarray(second_BQ - gain_B[:, None] * fitted_BQ)) / np.maximum(own_B, 1e-9)
    return np.where((gain_B > 0.5) & (gain_B < 2.0), np.maximum(scores_B, -1.0), -1.0)


def _alignment(first_BHW: Floats, second_BHW: Floats) -> Floats:
    """Shift and stretch along x and y that move the first pictures onto the second, [B, 4], by Gauss-Newton steps.

    The first step is on blurred pictures (Lucas and Kanade 1981, coarse to fine).
    """
    alignment_B4 = np.zeros((len(first_BHW), 4), dtype=np.float32)
    blurred = [gaussian_filter(pictures, (0, 1.5, 1.5)) for pictures in (first_BHW, second_BHW)]
    for source_BHW, target_BHW in ((blurred[0], blurred[1]), (first_BHW, second_BHW), (first_BHW, second_BHW)):
        moved_BHW = _moved(source_BHW, alignment_B4)
        alignment_B4 = np.clip(alignment_B4 + _correction(moved_BHW, target_BHW), -3.0, 3.0)
    return alignment_B4


CENTERED = ((np.arange(SIDE) - (SIDE - 1) / 2) / (SIDE / 2)).astype(np.float32)


def _moved(pictures_BHW: Floats, alignment_B4: Floats) -> Floats:
    """Pictures shifted and stretched, by linear interpolation along each axis."""
    grid = np.arange(SIDE, dtype=np.float32)

    def interpolation(shift_B: Floats, stretch_B: Floats) -> Floats:
        places = np.clip(grid + shift_B[:, None] + stretch_B[:, None] * CENTERED, 0, SIDE - 1)
        return np.maximum(1.0 - np.abs(places[:, :, None] - grid), 0.0)

    x_BWW = interpolation(alignment_B4[:, 0], alignment_B4[:, 1])
    y_BHH = interpolation(alignment_B4[:, 2], alignment_B4[:, 3])
    return np.asarray(y_BHH @ pictures_BHW @ x_BWW.transpose(0, 2, 1))


def _correction(moved_BHW: Floats, target_BHW: Floats) -> Floats:
    """The change of the alignment that fits best to first order, together with a gain in brightness, [B, 4]."""
    slope_y, slope_x = np.gradient(moved_BHW, axis=(1, 2))
    terms = (moved_BHW, slope_x, slope_x * CENTERED, slope_y, slope_y * CENTERED[:, None])
    terms_B5Q = np.stack([_inner(np.asarray(term)) for term in terms], axis=1)
    normal_B55 = (terms_B5Q @ terms_B5Q.transpose(0, 2, 1)).astype(np.float64)
    normal_B55 += (1e-5 * np.trace(normal_B55, axis1=1, axis2=2) + 1e-9)[:, None, None] * np.eye(5)
    solution_B5 = np.linalg.solve(normal_B55, terms_B5Q @ _inner(target_BHW)[:, :, None])[:, :, 0]
    return np.asarray(solution_B5[:, 1:] / np.maximum(solution_B5[:, :1], 0.2), dtype=np.float32)
