"""Checkpoints: a state dict from a file, without unpickling code, and its tensors in an architecture; all must fit."""

from __future__ import annotations

import hashlib
import logging
import pickle
import warnings
from collections.abc import Iterator, Mapping
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from edgedistill.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

log = logging.getLogger(__name__)

PREFIXES = ("module.", "_orig_mod.", "model.")  # of DataParallel, torch.compile and Lightning
STATE_KEYS = ("state_dict", "model_state_dict", "model")
EMA_KEYS = ("state_dict_ema", "model_ema", "ema")
AVERAGE_COUNTER = "n_averaged"  # torch.optim.swa_utils.AveragedModel counts its updates beside the weights
MAX_NESTED = 4  # a pickled mapping can hold itself
BATCH_COUNTER = "num_batches_tracked"
LEAVES = {"weight", "bias", "running_mean", "running_var"}  # tensors of one module that may have the same shape


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict from .safetensors, or from a torch file of plain tensors.

    A checkpoint's nested state dict is opened, and its exponential moving average (EMA) preferred. A prefix of PREFIXES
    that all names share is removed.

    Raises:
        InputError: the file is missing, broken, or a pickle that would run code when loaded.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise InputError(f"{path}: no such weights file", "name an existing file")
    try:
        if path.suffix == ".safetensors":
            return without_prefixes(load_file(path))
        with warnings.catch_warnings():
            # a file of a newer pickle protocol either loads, or is refused below with a reason
            warnings.filterwarnings("ignore", message="Detected pickle protocol", category=UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        fix = "save it with safetensors.torch.save_file, or give a torch file another suffix than .safetensors"
        raise InputError(f"{path}: not a safetensors file ({error})", fix) from None
    except pickle.UnpicklingError:
        raise InputError(
            f"{path}: holds pickled objects other than tensors, which could run code; it is not loaded",
            "save the state dict alone, best with safetensors.torch.save_file",
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # on broken bytes torch's readers raise errors of many types
        reason = str(error).strip().partition("\n")[0] or "it ends too early"  # EOFError has no message
        raise InputError(f"{path}: not a torch weights file ({reason})", "save it with torch.save") from None
    state = _nested_state(content, path)
    if state is None:
        raise InputError(f"{path}: not a state dict", "save model.state_dict()")
    return state


def _nested_state(content: object, path: Path, depth: int = 0) -> dict[str, Tensor] | None:
    """The state dict at or below `content`; None if there is none. EMA weights that lack tensors are not used."""
    import torch

    if not isinstance(content, Mapping) or depth > MAX_NESTED:
        return None
    trained = next((state for key in STATE_KEYS if (state := _nested_state(content.get(key), path, depth + 1))), None)
    for key in EMA_KEYS:
        averaged = _nested_state(content.get(key), path, depth + 1)
        if averaged and (trained is None or without_counters(trained).keys() <= averaged.keys()):
            log.warning("%s: the EMA weights (%s) are used", path, key)
            return averaged
        if averaged:
            log.warning("%s: the EMA weights (%s) lack tensors and are not used", path, key)
    if trained:
        return trained
    tensors = {name: tensor for name, tensor in content.items() if name != AVERAGE_COUNTER}
    plain = all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in tensors.items())
    return without_prefixes(tensors) if tensors and plain else None


def without_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state without the prefixes of PREFIXES that all of its names share, in any nesting."""
    while prefix := next((prefix for prefix in PREFIXES if state and all(n.startswith(prefix) for n in state)), ""):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return dict(state)


def without_counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state without the batch counters of batch norms; some exporters drop them."""
    return {name: tensor for name, tensor in state.items() if not name.endswith(BATCH_COUNTER)}


def fit_state(model: nn.Module, state: Mapping[str, Tensor], where: str, headless: bool = False) -> None:
    """Load `state` by name if the names agree, else in order if every shape agrees.

    Published weights often come from another implementation of the same net, with other names for the same tensors in
    the same order. Shared prefixes and batch counters are ignored on both sides.

    Args:
        model: the architecture.
        state: the tensors.
        where: name of the weights for an error message.
        headless: the model lacks a classifier: surplus tensors at the end of `state`, or by name, are ignored.

    Raises:
        InputError: they do not fit; the message names the first three tensors that differ.
    """
    named, tensors = without_counters(model.state_dict()), without_counters(state)
    own, loaded = without_prefixes(named), without_prefixes(tensors)
    pairs = _pairs(named, tensors, headless)
    if pairs is None:
        pairs = _pairs(own, loaded, headless) or _pairs_in_order(own, loaded, headless)
    else:
        own, loaded = named, tensors
    if pairs is None or any(own[name].shape != loaded[other].shape for name, other in pairs):
        raise _misfit(model, own, loaded, where=where, headless=headless)
    _refuse_other_order(pairs, where)
    real_names = dict(zip(own, named, strict=True))
    model.load_state_dict({real_names[name]: loaded[other] for name, other in pairs}, strict=False)


Pairs = list[tuple[str, str]]


def _pairs(own: Mapping[str, Tensor], loaded: Mapping[str, Tensor], headless: bool) -> Pairs | None:
    agree = own.keys() <= loaded.keys() and (headless or own.keys() == loaded.keys())
    return [(name, name) for name in own] if agree else None


def _pairs_in_order(own: Mapping[str, Tensor], loaded: Mapping[str, Tensor], headless: bool) -> Pairs | None:
    agree = len(own) == len(loaded) or (headless and len(own) < len(loaded))
    return list(zip(own, loaded, strict=not headless)) if agree else None


def _refuse_other_order(pairs: Pairs, where: str) -> None:
    """Refuse tensors that agree in shape and not in meaning: safetensors files are sorted by name."""
    for name, other in pairs:
        own_leaf, leaf = name.rpartition(".")[2], other.rpartition(".")[2]
        if own_leaf != leaf and {own_leaf, leaf} <= LEAVES:
            raise InputError(
                f"{where}: its tensors have other names and another order than the net's: {name} would be {other}",
                "save the state dict by torch.save, which keeps the order, or rename its tensors as the net's",
            )


def _misfit(
    model: nn.Module, own: Mapping[str, Tensor], loaded: Mapping[str, Tensor], *, where: str, headless: bool
) -> InputError:
    """The error for tensors that do not fit, with the fix: a prefix, a classifier that is missing, or the model."""
    if not headless and (head := _missing_head(model, own, loaded)):
        return InputError(
            f"{where}: holds no classifier: {', '.join(head)} missing",
            "use a file with the classifier that the weights were trained with",
        )
    by_name = 2 * len(own.keys() & loaded.keys()) >= min(len(own), len(loaded))
    missing, unexpected = len(own.keys() - loaded.keys()), len(loaded.keys() - own.keys())
    if not by_name:
        missing, unexpected = max(0, len(own) - len(loaded)), max(0, len(loaded) - len(own))
    differing = _differing_names(own, loaded, headless) if by_name else _differing_in_order(own, loaded)
    message = f"{where}: does not fit the net ({missing} missing, {unexpected} unexpected): "
    message += ", ".join(islice(differing, 3))
    if prefix := _prefix(own, loaded):
        return InputError(message, f"save the net's own state dict: the names in the file begin with `{prefix}`")
    if prefix := _prefix(loaded, own):
        return InputError(message, f"save the state dict of the net: the names in the file lack `{prefix}`")
    return InputError(message, "check `model`")


def _missing_head(model: nn.Module, own: Mapping[str, Tensor], loaded: Mapping[str, Tensor]) -> list[str]:
    """The classifier's tensors, if they are all that the file lacks; else none."""
    config = getattr(model, "pretrained_cfg", None) or {}
    modules = config.get("classifier") or next(reversed(list(own)), "").rpartition(".")[0]
    starts = tuple(f"{module}." for module in ([modules] if isinstance(modules, str) else modules))
    head = [name for name in own if name.startswith(starts)]
    body = [name for name in own if name not in head]
    others = body if set(body) == loaded.keys() else list(loaded)
    if len(others) != len(body) or not body:
        return []
    return head if all(own[a].shape == loaded[b].shape for a, b in zip(body, others, strict=True)) else []


def _differing_names(own: Mapping[str, Tensor], loaded: Mapping[str, Tensor], headless: bool) -> Iterator[str]:
    for name in [*own, *(other for other in loaded if other not in own and not headless)]:
        in_file, in_net = _shape(loaded, name), _shape(own, name)
        if in_file != in_net:
            yield f"{name} is {in_file} in the file and {in_net} in the net"


def _differing_in_order(own: Mapping[str, Tensor], loaded: Mapping[str, Tensor]) -> Iterator[str]:
    for name, other in zip_longest(own, loaded, fillvalue=""):
        in_file, in_net = _shape(loaded, other), _shape(own, name)
        if in_file != in_net:
            yield f"{other or name} is {in_file} in the file and {in_net} in the net" + f" ({name})" * bool(other)


def _shape(state: Mapping[str, Tensor], name: str) -> str:
    return str(tuple(state[name].shape)) if name in state else "absent"


def _prefix(names: Mapping[str, Tensor], longer: Mapping[str, Tensor]) -> str:
    """The prefix with which at least half of `names` stand in `longer`; "" if there is none."""
    starts = sorted({other.removesuffix(n) for n in islice(names, 3) for other in longer if other.endswith(f".{n}")})
    return next((start for start in starts if 2 * sum(start + name in longer for name in names) >= len(names)), "")


def hash_state(net: nn.Module, architecture: str) -> str:
    """sha256 over an architecture's name and a model's tensors with their names, in hex."""
    running = hashlib.sha256(architecture.encode())
    for name, tensor in net.state_dict().items():
        running.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return running.hexdigest()
