"""What every source must answer: features [B, D] and class probabilities [B, K], tested when it is loaded.

B images, D features, K classes of the source.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgedistill.errors import InputError
from edgedistill.sources.outputs import Network, infer

if TYPE_CHECKING:
    from torch import Tensor, nn

log = logging.getLogger(__name__)

Arrays = NDArray[Any]
PROBE_IMAGES = 2  # more than one, else a network that returns one row for any batch would pass
SUM_TOLERANCE = 0.02  # a softmax in float16, or over ten classes in int8, misses 1 by less
OTHER_OUTPUTS = "for an ONNX graph name its outputs in `probabilities` and `features`; else use another model"


def checked_network(network: Network, name: str) -> Network:
    """Run the source on a black and a random image; return it so that it answers with [B, D] and [B, K].

    A graph whose scores already are probabilities is not given a second softmax (`Network.without_softmax`).

    Raises:
        InputError: it cannot be run, or answers with anything else than features and probabilities.
    """
    try:
        bare = network.without_softmax
        if bare and _are_probabilities(_probe(replace(network, forward=bare.forward))[1]):
            log.warning("sources.%s: its class output already is a softmax and gets no second one", name)
            # with the hash of `logits: false`, else the cache would answer with outputs of the second softmax
            network = replace(network, forward=bare.forward, sha256=bare.sha256)
        features, probs = _probe(network)
        _require_probabilities(probs)
        _require_features(features)
    except InputError as error:
        raise InputError(f"sources.{name}: {error.message}", error.fix) from None
    except Exception as error:  # any error of a foreign network means that it cannot be run
        reason = str(error).strip().partition("\n")[0]
        sized = not isinstance(error, TypeError | AttributeError)  # those tell of its structure, not of a size
        raise InputError(
            f"sources.{name}: gives no features and classes for an image of {network.input_px} px "
            f"({type(error).__name__}: {reason})",
            "set input_px, or use another model" if sized else "use another model",
        ) from None
    return _squeezed(network) if features.ndim == 4 or probs.ndim == 4 else network


def require_classifier(net: nn.Module) -> None:
    """Raise InputError if a timm model has no classifier, or several.

    This holds for methods that need no source classes too: sources are cached and weighed by both outputs.
    """
    from torch import nn

    classifier = net.get_classifier()  # type: ignore[operator]
    if isinstance(classifier, nn.Identity):
        raise no_classifier()
    if not isinstance(classifier, nn.Module):
        raise InputError(f"has a {type(classifier).__name__} of classifiers, not one", "use another model")


def no_classifier() -> InputError:
    """The error for a model whose features would pass as classes."""
    return InputError(
        "has no classifier, and its features cannot be used as classes",
        "use a model with a classifier, or `kind: weights` with a file that holds one",
    )


def _probe(network: Network) -> tuple[Arrays, Arrays]:
    """Features and probabilities of two images, of any shape."""

    def forward(images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        outputs = network.forward(images_BCHW)
        _require_two_tensors(outputs)
        return outputs

    px = network.input_px
    images_NHWC = np.random.default_rng(0).integers(0, 256, (PROBE_IMAGES, px, px, 3), dtype=np.uint8)
    images_NHWC[0] = 0
    return infer(replace(network, forward=forward), images_NHWC)


def _require_two_tensors(outputs: object) -> None:
    import torch

    parts = outputs if isinstance(outputs, tuple | list) else [outputs]
    kinds = [tuple(part.shape) if isinstance(part, torch.Tensor) else type(part).__name__ for part in parts]
    if len(parts) != 2 or not all(isinstance(part, torch.Tensor) for part in parts):
        answer = ", ".join(str(kind) for kind in kinds)
        raise InputError(
            f"its forward returns a {type(outputs).__name__} ({answer}), not features [B, D] and classes [B, K]",
            "use another model, or export one tensor of features and one of classes",
        )


def _require_features(features: Arrays) -> None:
    _require_matrix(features, "features [B, D]")
    if not np.isfinite(features).all():
        raise InputError(f"its features {features.shape} are not finite", "check its weights, mean and std")


def _require_probabilities(probs: Arrays) -> None:
    if probs.ndim == 1 or (probs.ndim in {2, 4} and probs[0].size == 1):
        raise InputError(
            f"its classes are {probs.shape}: one output for each image, as of a sigmoid, and no class probabilities",
            "export a graph with two classes, [1 - p, p], and set `logits: false`",
        )
    _require_matrix(probs, "classes [B, K]")
    if not np.isfinite(probs).all():
        raise InputError(f"its class probabilities {probs.shape} are not finite", "check its weights, mean and std")
    if not _are_probabilities(probs):
        sums = probs.reshape(len(probs), -1).sum(axis=1)
        worst = sums[np.abs(sums - 1).argmax()]
        raise InputError(
            f"its classes {probs.shape} are no probabilities: the least is {probs.min():.3g}, a sum is {worst:.3g}",
            "set `logits: true` if they are logits, or export a graph that ends with a softmax",
        )


def _require_matrix(array: Arrays, contents: str) -> None:
    """Raise InputError unless the array is [B, n] or [B, n, 1, 1]."""
    if array.ndim not in {2, 4} or array.shape[2:] not in {(), (1, 1)}:
        raise InputError(f"answers with {array.shape} for {contents}", f"pool it over the image; {OTHER_OUTPUTS}")
    if len(array) != PROBE_IMAGES:
        raise InputError(
            f"answers with {array.shape} for {contents} of {PROBE_IMAGES} images",
            f"export it with a batch dimension; {OTHER_OUTPUTS}",
        )


def _are_probabilities(probs: Arrays) -> bool:
    """Whether the classes are nonnegative and sum to one for every image."""
    if probs.ndim not in {2, 4} or probs.shape[2:] not in {(), (1, 1)}:
        return False
    sums = probs.reshape(len(probs), -1).sum(axis=1)
    return bool((probs > -1e-4).all() and np.allclose(sums, 1.0, rtol=0.0, atol=SUM_TOLERANCE))


def _squeezed(network: Network) -> Network:
    def forward(images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        features, probs = network.forward(images_BCHW)
        return features.flatten(1), probs.flatten(1)

    return replace(network, forward=forward)
