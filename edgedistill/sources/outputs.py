"""A source's outputs on every image: computed once, cached on disk, and resumed after an interruption.

N images of the target's train store, D features, K classes of the source.
"""

# ruff: noqa: N802 - a property carries its shape suffix like every other array

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from edgedistill.console import say
from edgedistill.distributed import processes
from edgedistill.distributed.device import (
    Precision,
    autocast,
    default_device,
    free_cached_memory,
    images_at_once,
    is_out_of_memory,
    is_reduced,
    keep_freed_memory,
    pinned,
)
from edgedistill.errors import InputError
from edgedistill.run.files import digest, read_json, write_json

if TYPE_CHECKING:
    from torch import Tensor, nn

Triple = tuple[float, float, float]
Arrays = NDArray[Any]
FITTING: dict[tuple[str, int], int] = {}  # images that a GPU's memory holds, by a network's hash and input size
WRITTEN = 2**24  # bytes of zeros at a time
CHUNK = 256  # images between two writes to disk: an interrupted pass loses at most these


@dataclass(frozen=True, kw_only=True)
class Tunable:
    """A network's module, and its features [B, D] of normalized images, for training a copy of it on the target.

    The module is the one that the network runs: copy it before training.
    """

    module: nn.Module
    features: Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Network:
    """A frozen model with the preprocessing of its training.

    Attributes:
        forward: from normalized images [B, 3, px, px] to features [B, D] and probabilities [B, K]; None in place of the
            probabilities if the network has no classes.
        input_px: side of its input in pixels.
        mean: mean of the red, green and blue channel in its training, of values from 0 to 1.
        std: their standard deviations.
        sha256: hash of its weights and its architecture.
        without_softmax: the same network with its scores as probabilities, to use if they already are; else None.
        has_classes: False for a headless network, which ends with its features.
        tunable: its module; None for a network that cannot be trained, such as an ONNX graph.
    """

    forward: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    input_px: int
    mean: Triple
    std: Triple
    sha256: str
    without_softmax: Network | None = None
    has_classes: bool = True
    tunable: Tunable | None = None

    def facts(self) -> dict[str, Any]:
        """The network's entry in weigh/sources.json."""
        facts = {"sha256": self.sha256, "input_px": self.input_px, "mean": self.mean, "std": self.std}
        return facts if self.has_classes else {**facts, "features_only": True}


@dataclass(frozen=True, kw_only=True)
class SourceOutputs:
    """One source's outputs on every image, on disk in `folder`.

    The arrays are mapped anew on every access: maps kept for thousands of shards would exceed the limit of open files.
    """

    folder: Path
    has_classes: bool = True

    @property
    def features_ND(self) -> Arrays:
        """Features, float32 [N, D]."""
        return _memory_map(self.folder, "features")

    @property
    def probs_NK(self) -> Arrays | None:
        """Class probabilities, float16 [N, K]; rows sum to 1. None for a headless source."""
        return _memory_map(self.folder, "probs") if self.has_classes else None

    def rows(self, rows_M: Arrays) -> tuple[Arrays, Arrays | None]:
        """Features and class probabilities (or None) of some images, [M, D] and [M, K]."""
        probs_NK = self.probs_NK
        return self.features_ND[rows_M], None if probs_NK is None else probs_NK[rows_M]


def _memory_map(folder: Path, name: str) -> Arrays:
    return np.asanyarray(np.load(folder / f"{name}.npy", mmap_mode="r"))


def compute_outputs(
    network: Network,
    images: Callable[[int], Arrays],
    data_hash: str,
    cache: Path,
    progress: Callable[[int], object] = lambda done: None,
    order_others: Callable[..., object] | None = None,
) -> SourceOutputs:
    """Compute the source's outputs on every image, or read them from the cache; an interrupted pass is resumed.

    Args:
        network: the source.
        images: function of an input size in pixels that returns uint8 [N, px, px, 3].
        data_hash: hash of those images, in order; with the source's hash, its preprocessing and the precision it is the
            cache key.
        cache: the folder of all source outputs.
        progress: called with the number of images done since the last call.
        order_others: called before the computation with `start`, the first image without outputs; it makes the other
            processes of a training call `assist` from there. None if this process works alone.
    """
    conditions = _conditions(network.facts(), is_reduced(default_device(), "auto"))
    folder = cache / digest([network.sha256, data_hash, conditions])[:32]
    done_file = folder / "done.json"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # concurrent runs share the cache: one computes, the others wait
        outputs = _open_entry(folder, network) if done_file.exists() else None
        if outputs is None:
            done_file.unlink(missing_ok=True)
            _compute(network, images(network.input_px), folder=folder, progress=progress, order_others=order_others)
            write_json(done_file, conditions)
            outputs = _open_entry(folder, network)
    assert outputs is not None, "outputs that were just written can be read"
    return outputs


def _conditions(facts: Mapping[str, Any], reduced: bool) -> dict[str, Any]:
    """What outputs depend on besides the network and the images; among it the precision, if it is a reduced one."""
    conditions = {"px": facts["input_px"], "mean": facts["mean"], "std": facts["std"]}
    return {**conditions, "precision": "bfloat16"} if reduced else conditions


def _open_entry(folder: Path, network: Network) -> SourceOutputs | None:
    """Open a cache entry; None if one of its files is missing or damaged."""
    try:
        for name in ("features", "probs") if network.has_classes else ("features",):
            _memory_map(folder, name)
    except (FileNotFoundError, ValueError, EOFError):
        return None
    return SourceOutputs(folder=folder, has_classes=network.has_classes)


def _compute(
    network: Network,
    images_NHWC: Arrays,
    folder: Path,
    progress: Callable[[int], object],
    order_others: Callable[..., object] | None,
) -> None:
    """Write the outputs round by round into arrays on disk; at.json holds the number of finished images."""
    total, position_file = len(images_NHWC), folder / "at.json"
    fix = f"delete {folder}; it is written anew"
    resumes = position_file.exists() and _open_entry(folder, network) is not None
    start = int(read_json(position_file, fix)) if resumes else 0
    start = start if start < total else 0  # all images finished but no complete entry: it was damaged
    progress(start)
    team = processes.SINGLE_PROCESS
    if order_others:
        order_others(start=start)
        team = processes.team()
    for begin, features_BD, probs_BK in rounds(network, images_NHWC, start, team):
        if not all(np.isfinite(part).all() for part in (features_BD, probs_BK) if part is not None):
            raise InputError("its features or probabilities are not finite", "check its weights, mean and std")
        for name, part, dtype in (("features", features_BD, np.float32), ("probs", probs_BK, np.float16)):
            if part is None:
                continue
            path = folder / f"{name}.npy"
            if not begin:
                _reserve(path, dtype, (total, part.shape[1]))
            array = np.lib.format.open_memmap(path, mode="r+")
            array[begin : begin + len(part)] = part
            array.flush()
        write_json(position_file, begin + len(features_BD))
        progress(len(features_BD))


def rounds(
    network: Network, images_NHWC: Arrays, start: int, team: processes.Team
) -> Iterator[tuple[int, Arrays, Arrays | None]]:
    """Yield each round's first row, features and probabilities (or None); a round is a chunk of images per process."""
    total = len(images_NHWC)
    for begin in range(start, total, CHUNK * team.size):
        own = begin + CHUNK * team.rank
        own_outputs = infer(network, images_NHWC[own : own + CHUNK]) if own < total else None
        parts = [own_outputs] if team == processes.SINGLE_PROCESS else processes.all_gather(own_outputs)
        features, probs = zip(*(part for part in parts if part is not None), strict=True)
        yield begin, np.concatenate(features), np.concatenate(probs) if network.has_classes else None


def infer(
    network: Network, images_NHWC: Arrays, batch: int | None = None, precision: Precision = "auto"
) -> tuple[Arrays, Arrays | None]:
    """Run the source on uint8 [N, px, px, 3] in batches; return features_ND and probs_NK (or None) in float32.

    Args:
        network: the source.
        images_NHWC: the images.
        batch: images at a time; by default what suits the device. It is halved until a GPU's memory holds it, which is
            remembered for the network.
        precision: of the forward pass; "auto" is bfloat16 on a GPU and float32 on a CPU.

    Raises:
        InputError: a GPU's memory does not hold one image.
    """
    import torch

    keep_freed_memory()
    parts, begin, key = [], 0, (network.sha256, network.input_px)
    batch = batch or images_at_once()
    batch = min(batch, FITTING.get(key, batch))
    with torch.inference_mode():
        while begin < len(images_NHWC):
            outputs = _forward(network, np.array(images_NHWC[begin : begin + batch]), precision)
            if outputs is None:
                batch = FITTING[key] = _halved(min(batch, len(images_NHWC) - begin), network.input_px)
                continue
            parts.append(outputs)
            begin += batch
    features, *probs = (torch.cat(batches).numpy() for batches in zip(*parts, strict=True))
    return features, probs[0] if probs else None


def _forward(network: Network, images_BHWC: Arrays, precision: Precision) -> list[Tensor] | None:
    """Outputs on a batch, in float32 on the CPU; None if a GPU's memory does not hold it."""
    import torch

    from edgedistill.data.pixels import normalize

    device = default_device()
    try:
        images = pinned(torch.from_numpy(images_BHWC)).to(device, non_blocking=True)
        with autocast(device, precision):
            outputs = network.forward(normalize(images, network.mean, network.std))
        return [output.float().cpu() for output in outputs if output is not None]
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    return None


def _halved(batch: int, px: int) -> int:
    if batch == 1:
        raise InputError(
            f"the GPU's memory does not hold one image of {px} px", "end what else uses it, or leave it out"
        )
    say(f"  the GPU's memory does not hold {batch} images of {px} px: from here on {batch // 2} at a time")
    free_cached_memory()
    return batch // 2


def assist(network: Network, images_NHWC: Arrays, start: int) -> None:
    """Take part in the rounds whose outputs the leader writes."""
    for _ in rounds(network, images_NHWC, start, processes.team()):
        pass


def _reserve(path: Path, dtype: type[np.floating[Any]], shape: tuple[int, int]) -> None:
    """Create a .npy file of zeros with all blocks allocated: on a full disk a write to a sparse map raises a signal."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    with path.open("wb") as stream:
        np.lib.format.write_array_header_2_0(stream, header)
        stream.flush()
        size = shape[0] * shape[1] * np.dtype(dtype).itemsize
        if hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(stream.fileno(), stream.tell(), size)
            return
        for start in range(0, size, WRITTEN):
            stream.write(bytes(min(WRITTEN, size - start)))


def cached_outputs(facts: Mapping[str, Any], data_hash: str, cache: Path) -> SourceOutputs | None:
    """The outputs that `compute_outputs` left in the cache, in either precision, or None; the source is not loaded.

    Args:
        facts: the network's facts, as in weigh/sources.json.
        data_hash: hash of the images.
        cache: the folder of all source outputs.
    """
    for reduced in (False, True):  # whether this machine has a GPU only torch tells, which takes seconds to load
        folder = cache / digest([facts["sha256"], data_hash, _conditions(facts, reduced)])[:32]
        outputs = SourceOutputs(folder=folder)
        try:
            if (folder / "done.json").exists() and len(outputs.features_ND):
                return outputs
        except (OSError, ValueError, EOFError):
            continue
    return None
