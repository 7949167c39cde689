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
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgedistill.distill.augment import augment
from edgedistill.distill.probes import Floats, Rows, log_likelihood, probe_from_gram, softmax
from edgedistill.recipe.schema import Augment
from edgedistill.sources.divided import Divided, divide
from edgedistill.sources.outputs import Network

if TYPE_CHECKING:
    from torch import Tensor, nn

VERSION = 1  # raised when the same input gives another tuned net
EPOCHS, MOST = 30, 12_000  # passes over the labels, but at most so many images in one training
BATCH, RATE, DECAY, SMOOTHING = 32, 5e-4, 0.01, 0.1
VIEWS, MEMORY = 8, 2**30  # views of a labeled image; bytes that the stem's answers may take
TEMPERATURES = tuple(float(temperature) for temperature in np.geomspace(0.25, 4.0, 17))


@dataclass(frozen=True, kw_only=True)
class TunedSource:
    """What is kept of a source that was tuned.

    Attributes:
        state: the trained tensors: those of the net's parts by their names below `tail.`, and `head.weight` [C, D] and
            `head.bias` [C], whose scores are log-probabilities up to a constant.
        held_out_LC: probabilities of each labeled image by a net that was tuned without its fold; uniform where no fold
            holds it.
    """

    state: dict[str, Tensor]
    held_out_LC: Floats


def tune(
    source: Network,
    images_LHWC: NDArray[np.uint8],
    labels_L: Rows,
    classes: int,
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
        labels_L: their classes.
        classes: C.
        folds_L: the fold of each labeled image; -1 for those that always train.
        settings: how training images are augmented.
        seed: of the order of the images and of their augmentation.
        progress: called with 1 after each training.
    """
    assert source.tunable is not None, "only a network with a module is tuned"
    divided = divide(source.tunable, _normalized(source, images_LHWC[:BATCH]))
    training = _Training(
        divided=divided,
        views_VL=_views(source, divided, images_LHWC, settings=settings, seed=seed),
        labels_L=np.asarray(labels_L),
        classes=classes,
    )
    scores_LC = np.zeros((len(labels_L), classes), dtype=np.float32)
    for fold in np.unique(folds_L[folds_L >= 0]):
        net = training.fit(np.flatnonzero(folds_L != fold), seed=(seed, int(fold) + 1))
        rows = np.flatnonzero(folds_L == fold)
        scores_LC[rows] = training.scores(net, rows)
        progress(1)
    scored = folds_L >= 0
    temperature = max(TEMPERATURES, key=lambda degree: log_likelihood(scores_LC[scored] / degree, labels_L[scored]))
    net = training.fit(np.arange(len(labels_L)), seed=(seed, 0))
    progress(1)
    kept = tuple(f"tail.{name}." for name in divided.trained)
    state = {name: tensor.cpu().contiguous() for name, tensor in net.state_dict().items() if name.startswith(kept)}
    head = {f"head.{name}": tensor.cpu() / temperature for name, tensor in net["head"].state_dict().items()}
    return TunedSource(state={**state, **head}, held_out_LC=softmax(scores_LC / temperature))


def tuned_network(source: Network, state: Mapping[str, Tensor], identity: str) -> Network:
    """The tuned net as a headless source: its features are computed and cached as any other's.

    Args:
        source: the network that was tuned.
        state: of its `TunedSource`.
        identity: hash of the source and of all that it was tuned on.
    """
    assert source.tunable is not None, "it was tuned"
    module, features = copy.deepcopy(source.tunable.module), source.tunable.features
    trained = {name.removeprefix("tail."): tensor for name, tensor in state.items() if name.startswith("tail.")}
    misfit = module.load_state_dict(trained, strict=False)
    assert not misfit.unexpected_keys, "the state is of this net"

    def forward(images_BCHW: Tensor) -> tuple[Tensor, None]:
        return features(module, images_BCHW).flatten(1), None

    return Network(
        forward=forward,
        input_px=source.input_px,
        mean=source.mean,
        std=source.std,
        sha256=identity,
        has_classes=False,
    )


@dataclass(frozen=True, kw_only=True)
class _Training:
    """What the trainings of one source share.

    Attributes:
        divided: its net.
        views_VL: the stem's answers to every view of each labeled image, the first one as it is; float16 [V, L, ...].
        labels_L: classes of the labeled images.
        classes: C.
    """

    divided: Divided
    views_VL: Tensor
    labels_L: Rows
    classes: int

    def fit(self, rows: Rows, seed: tuple[int, int]) -> nn.ModuleDict:
        """Train a copy of the tail and a head on some of the labeled images: `tail` and `head`, in eval mode."""
        import torch
        import torch.nn.functional as F

        from edgedistill.distributed.device import default_device

        random = np.random.default_rng(seed)
        net = torch.nn.ModuleDict({"tail": copy.deepcopy(self.divided.tail)}).to(default_device()).eval()
        net["head"] = _ridge_head(self.features(net, rows), self.labels_L[rows], self.classes).to(default_device())
        parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=DECAY)
        batches = _batches(rows, random)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
        labels_L = torch.from_numpy(self.labels_L).to(default_device())
        for batch in batches:
            features_BD = self._features(net, random.integers(len(self.views_VL), size=len(batch)), batch)
            loss = F.cross_entropy(net["head"](features_BD), labels_L[batch], label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
        return net.requires_grad_(False)

    def _features(self, net: nn.ModuleDict, views: Rows | int, rows: Rows) -> Tensor:
        from edgedistill.distributed.device import default_device

        inputs_B = self.views_VL[views, rows].float().to(default_device())
        return self.divided.features(net["tail"], inputs_B).flatten(1)

    def features(self, net: nn.ModuleDict, rows: Rows) -> Floats:
        """The features of some labeled images as they are, [R, D]."""
        import torch

        batches = np.array_split(rows, -(-len(rows) // BATCH))
        with torch.no_grad():
            return np.concatenate([self._features(net, 0, batch).cpu().numpy() for batch in batches])

    def scores(self, net: nn.ModuleDict, rows: Rows) -> Floats:
        """The scores of some labeled images as they are, [R, C]."""
        return head_scores(net["head"].state_dict(), self.features(net, rows))


def _batches(rows: Rows, random: np.random.Generator) -> list[Rows]:
    """The rows of all batches: the labeled images in random orders, one after another."""
    size = min(BATCH, len(rows))
    epochs = max(1, min(EPOCHS, MOST // len(rows)))
    order = np.concatenate([random.permutation(rows) for _ in range(epochs)])
    return np.array_split(order[: len(order) // size * size], len(order) // size)


def head_scores(head: Mapping[str, Tensor], features_MD: Floats) -> Floats:
    """The scores [M, C] that `weight` [C, D] and `bias` [C] give to features."""
    weight_CD, bias_C = head["weight"].cpu().numpy(), head["bias"].cpu().numpy()
    return np.asarray(features_MD @ weight_CD.T + bias_C)


def _ridge_head(features_RD: Floats, labels_R: Rows, classes: int) -> nn.Linear:
    """The head that a ridge on the labels gives: a random one would spend the short training on finding its place."""
    import torch

    mean_D = features_RD.mean(axis=0)
    length = float(np.sqrt(np.square(features_RD - mean_D).sum(axis=1).mean())) or 1.0
    scaled_RD = ((features_RD - mean_D) / length).astype(np.float64)
    ridge = probe_from_gram(scaled_RD @ scaled_RD.T, np.arange(len(labels_R)), labels_R, classes)
    weight_CD = (scaled_RD.T @ ridge.duals_LC).T / length
    head = torch.nn.Linear(features_RD.shape[1], classes)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight_CD))
        head.bias.copy_(torch.from_numpy(-weight_CD @ mean_D))
    return head


def _views(
    source: Network, divided: Divided, images_LHWC: NDArray[np.uint8], *, settings: Augment, seed: int
) -> Tensor:
    """The stem's answers to views of the labeled images, as many as the memory holds, float16 [V, L, ...]."""
    import torch

    random = torch.Generator().manual_seed(seed)
    batches = np.array_split(images_LHWC, -(-len(images_LHWC) // BATCH))

    def view(augmented: bool) -> Tensor:
        answers = []
        for images_BHWC in batches:
            images_BCHW = _normalized(source, images_BHWC)
            answers.append(divided.stem(augment(images_BCHW, settings, random) if augmented else images_BCHW).half())
        return torch.cat(answers).cpu()

    with torch.no_grad():
        views = [view(augmented=False)]
        count = max(2, min(VIEWS, MEMORY // views[0].nbytes))
        return torch.stack([*views, *(view(augmented=True) for _ in range(count - 1))])


def _normalized(source: Network, images_BHWC: NDArray[np.uint8]) -> Tensor:
    import torch

    from edgedistill.data.pixels import normalize
    from edgedistill.distributed.device import default_device

    return normalize(torch.from_numpy(np.array(images_BHWC)).to(default_device()), source.mean, source.std)
