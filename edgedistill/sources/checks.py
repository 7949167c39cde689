"""What every source must answer: features [B, D] and, with classes, probabilities [B, K]; tested when it is loaded.

B images, D features, K classes of the source.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
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
OTHER_OUTPUTS = (
    "for an ONNX graph name its outputs in `probabilities` and `features`, or set `headless: true` if it has no "
    "classes; else use another model"
)
# sizes of the embedding that towers of image-text models (CLIP and its kin) end with, in timm's registry; no published
# set of labels in it has one of these sizes
EMBEDDING_SIZES = {384, 512, 640, 768, 1024, 1152, 1280}


def checked_network(network: Network, name: str) -> Network:
    """Run the source on a black and a random image; return it so that it answers with [B, D] and [B, K] or None.

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
        if probs is not None:
            _require_probabilities(probs)
        _require_features(features)
    except InputError as error:
        raise InputError(f"sources.{name}: {error.message}", error.fix) from None
    except Exception as error:  # any error of a foreign network means that it cannot be run
        reason = str(error).strip().partition("\n")[0]
        sized = not isinstance(error, TypeError | AttributeError)  # those tell of its structure, not of a size
        answer = "features and classes" if network.has_classes else "features"
        raise InputError(
            f"sources.{name}: gives no {answer} for an image of {network.input_px} px "
            f"({type(error).__name__}: {reason})",
            "set input_px, or use another model" if sized else "use another model",
        ) from None
    return _squeezed(network) if 4 in {array.ndim for array in (features, probs) if array is not None} else network


def classifier_of(net: nn.Module) -> nn.Module | None:
    """The classifier of a timm model; None if it ends with features or, as the towers of CLIP, with an embedding.

    Raises:
        InputError: it has several classifiers.
    """
    from timm.models import get_pretrained_cfg, list_pretrained
    from torch import nn

    classifier = net.get_classifier()  # type: ignore[operator]
    if not isinstance(classifier, nn.Module):
        raise InputError(f"has a {type(classifier).__name__} of classifiers, not one", "use another model")
    config: Mapping[str, Any] = net.pretrained_cfg  # type: ignore[assignment]
    published = list_pretrained(f"{config['architecture']}.*")
    embeds = net.num_classes in EMBEDDING_SIZES & {get_pretrained_cfg(model).num_classes for model in published}
    return None if embeds or isinstance(classifier, nn.Identity) else classifier


def is_published_headless(model: str) -> bool:
    """Whether timm publishes the model without classes, as its registry says; False for models that it does not list.

    Raises:
        RuntimeError: timm knows the architecture, but no such weights of it.
    """
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(model, allow_unregistered=True)
    return config is not None and config.num_classes in {0, *EMBEDDING_SIZES}


def _probe(network: Network) -> tuple[Arrays, Arrays | None]:
    """Features and probabilities of two images, of any shape."""

    def forward(images_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        outputs = network.forward(images_BCHW)
        _require_tensors(outputs, network.has_classes)
        return outputs

    px = network.input_px
    images_NHWC = np.random.default_rng(0).integers(0, 256, (PROBE_IMAGES, px, px, 3), dtype=np.uint8)
    images_NHWC[0] = 0
    # whether classes are probabilities is told by their sums, which bfloat16 would blur
    return infer(replace(network, forward=forward), images_NHWC, precision="float32")


def _require_tensors(outputs: object, has_classes: bool) -> None:
    import torch

    parts = outputs if isinstance(outputs, tuple | list) else [outputs]
    kinds = [tuple(part.shape) if isinstance(part, torch.Tensor) else type(part).__name__ for part in parts]
    if [isinstance(part, torch.Tensor) or part for part in parts] != [True, True if has_classes else None]:
        answer, classes = ", ".join(str(kind) for kind in kinds), "classes [B, K]" if has_classes else "None"
        raise InputError(
            f"its forward returns a {type(outputs).__name__} ({answer}), not features [B, D] and {classes}",
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


def _are_probabilities(probs: Arrays | None) -> bool:
    """Whether the classes are nonnegative and sum to one for every image."""
    if probs is None or probs.ndim not in {2, 4} or probs.shape[2:] not in {(), (1, 1)}:
        return False
    sums = probs.reshape(len(probs), -1).sum(axis=1)
    return bool((probs > -1e-4).all() and np.allclose(sums, 1.0, rtol=0.0, atol=SUM_TOLERANCE))


def _squeezed(network: Network) -> Network:
    def forward(images_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        features, probs = network.forward(images_BCHW)
        return features.flatten(1), None if probs is None else probs.flatten(1)

    return replace(network, forward=forward)
