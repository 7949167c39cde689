"""A net divided into first parts, which stay as they are, and last parts, which are to be trained.

Most nets are chains of parts. Where the first ones are replaced by identities, the rest computes on from what they
answered: a training of the last parts needs those answers once. That a net is such a chain is checked on images.

B images, D features.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgedistill.distributed.device import is_out_of_memory
from edgedistill.sources.outputs import Tunable

if TYPE_CHECKING:
    from torch import Tensor, nn

SHARE = 0.75  # of the parameters that the features take, the last of them, that are trained
SAME = 1e-3  # difference, relative to the largest feature, up to which a divided net answers as the whole one
# what nets raise that are no chain: other shapes, other arguments, a part that is not called
NO_CHAIN = (RuntimeError, TypeError, ValueError, AttributeError, IndexError, AssertionError)


class _Reached(Exception):  # noqa: N818 - no error: it ends a forward pass
    def __init__(self, tensor: object) -> None:
        self.tensor = tensor


@dataclass(frozen=True, kw_only=True)
class Divided:
    """A net in two.

    Attributes:
        stem: from normalized images [B, 3, px, px] to what the first trained part takes; the images themselves for a
            net that is no chain.
        tail: a copy of the net without its first parts; only the trained parameters require gradients.
        features: of the network, to apply to the tail: [B, D] or [B, D, 1, 1] from what the stem answers.
        trained: the names of the trained parameters.
    """

    stem: Callable[[Tensor], Tensor]
    tail: nn.Module
    features: Callable[[nn.Module, Tensor], Tensor]
    trained: tuple[str, ...]


def divide(tunable: Tunable, images_BCHW: Tensor) -> Divided:
    """Divide a net.

    Args:
        tunable: the network's module in eval mode, frozen.
        images_BCHW: some normalized images.
    """
    import torch

    used = _used(tunable, images_BCHW[:2])
    with torch.no_grad():  # no inference mode: trainings begin at the stem's answers
        names, features = _in_order(tunable, images_BCHW)
        sizes = [sum(used[name] for name in used if name.startswith(f"{part}.")) for part in names]
        enough = [index for index in range(len(names)) if sum(sizes[index:]) >= SHARE * sum(used.values())]
        first = max(enough, default=0)
        last_parts = tuple(f"{part}." for part in names[first:])
        trained = tuple(name for name in used if name.startswith(last_parts)) if enough else tuple(used)
        if first and not _shares_parameters(tunable.module, names[:first], trained):
            chain = _trainable(tunable.module, trained, replaced=names[:first])

            def stem(images_BCHW: Tensor) -> Tensor:
                return _before(tunable, names[first], images_BCHW)

            try:
                continued = tunable.features(chain, stem(images_BCHW))
                if torch.allclose(continued, features, rtol=0.0, atol=SAME * float(features.abs().max())):
                    return Divided(stem=stem, tail=chain, features=tunable.features, trained=trained)
            except NO_CHAIN as error:
                if is_out_of_memory(error):
                    raise
    tail = _trainable(tunable.module, trained, replaced=[])
    return Divided(stem=lambda images_BCHW: images_BCHW, tail=tail, features=tunable.features, trained=trained)


def _used(tunable: Tunable, images_BCHW: Tensor) -> dict[str, int]:
    """The names and sizes of the parameters that the features depend on: not those of a classifier behind them."""
    import torch

    net = copy.deepcopy(tunable.module).requires_grad_(True)
    with torch.enable_grad():
        torch.autograd.backward(tunable.features(net, images_BCHW).sum())
    return {name: parameter.numel() for name, parameter in net.named_parameters() if parameter.grad is not None}


def _parts(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The parts of a net: its children, and instead of a sequence or a list the parts of that."""
    import torch

    for name, child in module.named_children():
        if isinstance(child, torch.nn.Sequential | torch.nn.ModuleList | torch.nn.ModuleDict) and len(child):
            yield from _parts(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


def _in_order(tunable: Tunable, images_BCHW: Tensor) -> tuple[list[str], Tensor]:
    """The names of the parts that compute the features, in the order of their first call; and the features."""
    names: dict[str, None] = {}
    hooks = [
        part.register_forward_pre_hook(lambda module, inputs, name=name: names.setdefault(name))
        for name, part in _parts(tunable.module)
    ]
    try:
        features = tunable.features(tunable.module, images_BCHW)
    finally:
        for hook in hooks:
            hook.remove()
    return list(names), features


def _before(tunable: Tunable, name: str, images_BCHW: Tensor) -> Tensor:
    """What the net computes before a part."""
    import torch

    def stop(module: nn.Module, inputs: tuple[object, ...]) -> None:
        raise _Reached(inputs[0] if len(inputs) == 1 else None)

    hook = tunable.module.get_submodule(name).register_forward_pre_hook(stop)
    try:
        tunable.features(tunable.module, images_BCHW)
    except _Reached as reached:
        assert isinstance(reached.tensor, torch.Tensor), "the part takes one tensor"
        return reached.tensor
    finally:
        hook.remove()
    raise AssertionError("the part is called")


def _shares_parameters(module: nn.Module, parts: list[str], trained: tuple[str, ...]) -> bool:
    """Whether some parts hold a parameter that is trained: they do not stay as they are then."""
    own = {id(parameter) for part in parts for parameter in module.get_submodule(part).parameters()}
    return any(id(module.get_parameter(name)) in own for name in trained)


def _trainable(module: nn.Module, trained: tuple[str, ...], replaced: list[str]) -> nn.Module:
    """A copy of which the named parameters require gradients, with identities in place of some parts."""
    import torch

    net = copy.deepcopy(module).requires_grad_(False)
    for name in replaced:
        parent, _, child = name.rpartition(".")
        setattr(net.get_submodule(parent), child, torch.nn.Identity())
    for name in trained:
        net.get_parameter(name).requires_grad_(True)
    return net.to(memory_format=torch.channels_last)
