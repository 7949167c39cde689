"""A source tuned to the target: a copy of its net whose last parts, with a new head, are trained on the labels.

Features of other domains may tell the target's classes poorly: those of photographs tell signs, cells or lesions. A
short training on the labels mends part of it, and what the tuned net says of the unlabeled images teaches the student
(Zhang, Mai, Nguyen and Chao, NeurIPS 2025, arXiv 2503.09707). What that is worth cannot be told on images that it was
trained on. So a net is also tuned for each fold of the labels, without it.

The parts before the trained ones answer a few views of each labeled image once; all trainings begin at these answers.

L labeled images, V views of each, D features of the source, C target classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgedistill.distill.augment import augment
from edgedistill.distill.head_start import gram, ridge, scale
from edgedistill.distill.probes import Floats, Labels, Rows, log_likelihood, softmax
from edgedistill.errors import InputError
from edgedistill.labels.prior import balanced_weights
from edgedistill.recipe.schema import Augment
from edgedistill.sources.divided import Divided, divide
from edgedistill.sources.outputs import Network

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

# raised when the same input gives another tuned net; 2: the head's leave-one-out without the image's share in the mean
VERSION = 2
EPOCHS, MOST = 30, 12_000  # passes over the labels, but at most so many images in one training
BATCH, RATE, DECAY, SMOOTHING = 32, 5e-4, 0.01, 0.1
VIEWS, MEMORY = 8, 2**30  # views of a labeled image; bytes that the stem's answers to all of them may take
LARGEST_HALF = 6e3  # answers of a stem that are larger are kept in float32: float16 ends at 65,504
TEMPERATURES = tuple(float(temperature) for temperature in np.geomspace(0.25, 4.0, 17))


@dataclass(frozen=True, kw_only=True)
class TunedSource:
    """What is kept of a source that was tuned.

    Attributes:
        state: the trained parameters of the net by their names below `tail.`; and `head.weight` [C, D] and `head.bias`
            [C], whose scores are log-probabilities up to a constant.
        held_out_LC: probabilities of each labeled image by a net that was tuned without its fold; uniform where no fold
            holds it.
    """

    state: dict[str, Tensor]
    held_out_LC: Floats


def tune(
    source: Network,
    images_LHWC: NDArray[np.uint8],
    labels: Labels,
    *,
    folds_L: Rows,
    settings: Augment,
    seed: int,
    progress: Callable[[int], object] = lambda trainings: None,
) -> TunedSource:
    """Tune a source on all labels, and once without each fold.

    Args:
        source: a network with a module (`tunable`).
        images_LHWC: the labeled images at the source's input size, uint8.
        labels: theirs.
        folds_L: the fold of each labeled image; -1 for those that always train. No fold divides a unit.
        settings: how training images are augmented.
        seed: of the order of the images and of their augmentation.
        progress: called with 1 after each training.

    Raises:
        InputError: the features of a net, before or after it is tuned, are not finite.
    """
    import torch

    from edgedistill.distributed.device import keep_freed_memory

    keep_freed_memory()
    assert source.tunable is not None, "only a network with a module is tuned"
    divided = divide(source.tunable, _normalized(source, images_LHWC[:BATCH]))
    inputs = _Inputs(source=source, divided=divided, images_LHWC=images_LHWC, settings=settings)
    training, labels_L = _Training(divided=divided, inputs=inputs.kept(seed), labels=labels), labels.labels_L
    scores_LC = np.zeros((len(labels_L), labels.classes), dtype=np.float32)
    for fold in np.unique(folds_L[folds_L >= 0]):
        net = training.fit(np.flatnonzero(folds_L != fold), seed=(seed, int(fold) + 1))
        rows = np.flatnonzero(folds_L == fold)
        scores_LC[rows] = training.scores(net, rows)
        progress(1)
    scored = folds_L >= 0
    weight_S = _weights(labels_L[scored])
    temperature = max(
        TEMPERATURES, key=lambda degree: log_likelihood(scores_LC[scored] / degree, labels_L[scored], weight_S)
    )
    net = training.fit(np.arange(len(labels_L)), seed=(seed, 0))
    progress(1)
    training.features(net, np.arange(len(labels_L)))  # it raises what is to be raised before anything is kept
    parameters = dict(net["tail"].named_parameters())
    state = {
        f"tail.{name}": parameters[name].detach().cpu().clone(memory_format=torch.contiguous_format)
        for name in divided.trained
    }
    head = {f"head.{name}": tensor.cpu() / temperature for name, tensor in net["head"].state_dict().items()}
    return TunedSource(state={**state, **head}, held_out_LC=softmax(scores_LC / temperature))


def _weights(labels_L: Rows) -> Floats:
    """A weight for each labeled image: as much for every class that has labels."""
    return np.asarray(balanced_weights(np.bincount(labels_L))[labels_L])


def tuned_network(source: Network, state: Mapping[str, Tensor], identity: str) -> Network:
    """The tuned net as a headless source: its features are computed and cached as any other's.

    Args:
        source: the network that was tuned.
        state: of its `TunedSource`.
        identity: hash of the file that the state is from.
    """
    import torch

    assert source.tunable is not None, "it was tuned"
    module, features = copy.deepcopy(source.tunable.module), source.tunable.features
    with torch.no_grad():
        for name, tensor in state.items():
            if name.startswith("tail."):
                module.get_parameter(name.removeprefix("tail.")).copy_(tensor)

    def forward(images_BCHW: Tensor) -> tuple[Tensor, None]:
        return features(module, images_BCHW).flatten(1), None

    return replace(source, forward=forward, sha256=identity, without_softmax=None, has_classes=False, tunable=None)


@dataclass(frozen=True, kw_only=True)
class _Inputs:
    """What the first trained part takes of the labeled images.

    Attributes:
        source: the network.
        divided: its net.
        images_LHWC: the labeled images.
        settings: how they are augmented.
        views_VL: the stem's answers to views of each image, the first one as it is, [V, L, ...]; None where they are
            computed in every batch.
    """

    source: Network
    divided: Divided
    images_LHWC: NDArray[np.uint8]
    settings: Augment
    views_VL: Tensor | None = None

    def kept(self, seed: int) -> _Inputs:
        """The same with as many views as the memory holds; without, if it does not hold two."""
        import torch

        generator, every = torch.Generator().manual_seed(seed), np.arange(len(self.images_LHWC))
        sample = self.plain(every[:BATCH])
        dtype = torch.float16 if float(sample.abs().max()) < LARGEST_HALF else torch.float32
        size = sample[0].numel() * dtype.itemsize * len(every)
        count = min(VIEWS, MEMORY // size)
        if count < 2:
            return self
        views_VL = torch.empty((count, len(every), *sample.shape[1:]), dtype=dtype)
        for view in range(count):
            for rows in np.array_split(every, -(-len(every) // BATCH)):
                views_VL[view, rows] = (self._augmented(rows, generator) if view else self.plain(rows)).to("cpu", dtype)
        return replace(self, views_VL=views_VL)

    def plain(self, rows: Rows) -> Tensor:
        """Of some images as they are, on the device."""
        import torch

        from edgedistill.distributed.device import default_device

        if self.views_VL is not None:
            return self.views_VL[0, rows].float().to(default_device())
        with torch.no_grad():
            return self.divided.stem(_normalized(self.source, self.images_LHWC[rows]))

    def view(self, rows: Rows, random: np.random.Generator) -> Tensor:
        """Of a view of some images, on the device."""
        import torch

        from edgedistill.distributed.device import default_device

        if self.views_VL is not None:
            views = random.integers(len(self.views_VL), size=len(rows))
            return self.views_VL[views, rows].float().to(default_device())
        return self._augmented(rows, torch.Generator().manual_seed(int(random.integers(2**32))))

    def _augmented(self, rows: Rows, generator: Generator) -> Tensor:
        import torch

        with torch.no_grad():
            images_BCHW = _normalized(self.source, self.images_LHWC[rows])
            return self.divided.stem(augment(images_BCHW, self.settings, generator))


@dataclass(frozen=True, kw_only=True)
class _Training:
    """What the trainings of one source share: its net, what that takes, and the labels."""

    divided: Divided
    inputs: _Inputs
    labels: Labels

    def fit(self, rows: Rows, seed: tuple[int, int]) -> nn.ModuleDict:
        """Train a copy of the tail and a head on some of the labeled images: `tail` and `head`, in eval mode.

        As in the probes, every class has the same weight at any number of labels.
        """
        import torch
        import torch.nn.functional as F

        from edgedistill.distributed.device import default_device

        device, random = default_device(), np.random.default_rng(seed)
        net = torch.nn.ModuleDict({"tail": copy.deepcopy(self.divided.tail)}).to(device).eval()
        net["head"] = ridge_head(self.features(net, rows), self.labels.at(rows)).to(device)
        parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=DECAY)
        batches = _batches(rows, random)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
        labels_L, weight_L = torch.from_numpy(self.labels.labels_L).to(device), torch.zeros(len(self.labels.labels_L))
        weight_L[rows] = torch.from_numpy(_weights(self.labels.labels_L[rows]).astype(np.float32))
        weight_L = weight_L.to(device)
        for batch in batches:
            features_BD = self.divided.features(net["tail"], self.inputs.view(batch, random)).flatten(1)
            loss_B = F.cross_entropy(
                net["head"](features_BD), labels_L[batch], label_smoothing=SMOOTHING, reduction="none"
            )
            optimizer.zero_grad()
            torch.autograd.backward((weight_L[batch] * loss_B).mean())
            optimizer.step()
            schedule.step()
        return net.requires_grad_(False)

    def features(self, net: nn.ModuleDict, rows: Rows) -> Floats:
        """The features of some labeled images as they are, [R, D]."""
        import torch

        batches = np.array_split(rows, -(-len(rows) // BATCH))
        with torch.no_grad():
            parts = [self.divided.features(net["tail"], self.inputs.plain(batch)).flatten(1) for batch in batches]
        features_RD = np.concatenate([part.cpu().numpy() for part in parts])
        if not np.isfinite(features_RD).all():
            raise InputError("its features are not finite", "leave it out, or check its mean and std")
        return features_RD

    def scores(self, net: nn.ModuleDict, rows: Rows) -> Floats:
        """The scores of some labeled images as they are, [R, C]."""
        return head_scores(net["head"].state_dict(), self.features(net, rows))


def _batches(rows: Rows, random: np.random.Generator) -> list[Rows]:
    """The rows of all batches: the labeled images in random orders, one after another."""
    size = min(BATCH, len(rows))
    order = np.concatenate([random.permutation(rows) for _ in range(min(EPOCHS, -(-MOST // len(rows))))])[:MOST]
    return np.array_split(order[: len(order) // size * size], len(order) // size)


def head_scores(head: Mapping[str, Tensor], features_MD: Floats) -> Floats:
    """The scores [M, C] that `weight` [C, D] and `bias` [C] give to features."""
    weight_CD, bias_C = head["weight"].cpu().numpy(), head["bias"].cpu().numpy()
    return np.asarray(features_MD @ weight_CD.T + bias_C)


def ridge_head(features_RD: Floats, labels: Labels) -> nn.Linear:
    """The head that a ridge on the labels gives: a random one would spend the short training on finding its place."""
    import torch

    scaled = scale(features_RD, labels.labels_L)
    scaled = replace(scaled, scaled_MD=scaled.scaled_MD.astype(np.float64))
    weights_DC = scaled.scaled_MD.T @ ridge(gram(scaled), labels).duals_LC
    linear = scaled.layer(weights_DC, np.zeros(labels.classes))
    head = torch.nn.Linear(features_RD.shape[1], labels.classes, device="meta").to_empty(device="cpu")  # draws nothing
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(linear.weight_KD))
        head.bias.copy_(torch.from_numpy(linear.bias_K))
    return head


def _normalized(source: Network, images_BHWC: NDArray[np.uint8]) -> Tensor:
    import torch

    from edgedistill.data.pixels import normalize
    from edgedistill.distributed.device import default_device

    return normalize(torch.from_numpy(np.array(images_BHWC)).to(default_device()), source.mean, source.std)
