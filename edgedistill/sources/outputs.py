"""A source's outputs on every image: computed once, cached on disk, and resumed after an interruption.

N images of the target's train store, D features, K classes of the source.
"""

# ruff: noqa: N802 - a property carries its shape suffix like every other array

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from edgedistill.distributed import processes
from edgedistill.distributed.device import default_device
from edgedistill.errors import InputError
from edgedistill.run.files import digest, read_json, write_json

if TYPE_CHECKING:
    from torch import Tensor

Triple = tuple[float, float, float]
Arrays = NDArray[Any]
CHUNK = 256  # images between two writes to disk: an interrupted pass loses at most these


@dataclass(frozen=True, kw_only=True)
class Network:
    """A frozen model with the preprocessing of its training.

    Attributes:
        forward: from normalized images [B, 3, px, px] to features [B, D] and probabilities [B, K].
        input_px: side of its input in pixels.
        mean: mean of the red, green and blue channel in its training, of values from 0 to 1.
        std: their standard deviations.
        sha256: hash of its weights and its architecture.
        without_softmax: the same network with its scores as probabilities, to use if they already are; else None.
    """

    forward: Callable[[Tensor], tuple[Tensor, Tensor]]
    input_px: int
    mean: Triple
    std: Triple
    sha256: str
    without_softmax: Network | None = None

    def facts(self) -> dict[str, Any]:
        """The network's entry in weigh/sources.json."""
        return {"sha256": self.sha256, "input_px": self.input_px, "mean": self.mean, "std": self.std}


@dataclass(frozen=True, kw_only=True)
class SourceOutputs:
    """One source's outputs on every image, on disk in `folder`.

    The arrays are mapped anew on every access: maps kept for thousands of shards would exceed the limit of open files.
    """

    folder: Path

    @property
    def features_ND(self) -> Arrays:
        """Features, float32 [N, D]."""
        return _memory_map(self.folder, "features")

    @property
    def probs_NK(self) -> Arrays:
        """Class probabilities, float16 [N, K]; rows sum to 1."""
        return _memory_map(self.folder, "probs")


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
        data_hash: hash of those images, in order; with the source's hash and preprocessing it is the cache key.
        cache: the folder of all source outputs.
        progress: called with the number of images done since the last call.
        order_others: called before the computation with `start`, the first image without outputs; it makes the other
            processes of a training call `assist` from there. None if this process works alone.
    """
    preprocessing = {"px": network.input_px, "mean": network.mean, "std": network.std}
    folder = cache / digest([network.sha256, data_hash, preprocessing])[:32]
    done_file = folder / "done.json"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # concurrent runs share the cache: one computes, the others wait
        outputs = _open_entry(folder) if done_file.exists() else None
        if outputs is None:
            done_file.unlink(missing_ok=True)
            _compute(network, images(network.input_px), folder=folder, progress=progress, order_others=order_others)
            write_json(done_file, preprocessing)
            outputs = _open_entry(folder)
    assert outputs is not None, "outputs that were just written can be read"
    return outputs


def _open_entry(folder: Path) -> SourceOutputs | None:
    """Open a cache entry; None if one of its two files is missing or damaged."""
    try:
        for name in ("features", "probs"):
            _memory_map(folder, name)
    except (FileNotFoundError, ValueError, EOFError):
        return None
    return SourceOutputs(folder=folder)


def _compute(
    network: Network,
    images_NHWC: Arrays,
    folder: Path,
    progress: Callable[[int], object],
    order_others: Callable[..., object] | None,
) -> None:
    """Write the outputs round by round into two arrays on disk; at.json holds the number of finished images."""
    total, position_file = len(images_NHWC), folder / "at.json"
    start = int(read_json(position_file)) if position_file.exists() and _open_entry(folder) is not None else 0
    start = start if start < total else 0  # all images finished but no complete entry: it was damaged
    progress(start)
    team = processes.SINGLE_PROCESS
    if order_others:
        order_others(start=start)
        team = processes.team()
    for begin, features_BD, probs_BK in rounds(network, images_NHWC, start, team):
        if not (np.isfinite(features_BD).all() and np.isfinite(probs_BK).all()):
            raise InputError("its features or probabilities are not finite", "check its weights, mean and std")
        for name, part, dtype in (("features", features_BD, np.float32), ("probs", probs_BK, np.float16)):
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
) -> Iterator[tuple[int, Arrays, Arrays]]:
    """Yield each round's first row, features and probabilities; a round is one chunk of images per process."""
    total = len(images_NHWC)
    for begin in range(start, total, CHUNK * team.size):
        own = begin + CHUNK * team.rank
        own_outputs = infer(network, images_NHWC[own : own + CHUNK]) if own < total else None
        parts = [own_outputs] if team == processes.SINGLE_PROCESS else processes.all_gather(own_outputs)
        features, probs = zip(*(part for part in parts if part is not None), strict=True)
        yield begin, np.concatenate(features), np.concatenate(probs)


def infer(network: Network, images_NHWC: Arrays, batch: int = 64) -> tuple[Arrays, Arrays]:
    """Run the source on uint8 [N, px, px, 3] in batches; return features_ND and probs_NK in float32."""
    import torch

    from edgedistill.data.pixels import normalize

    parts = []
    with torch.inference_mode():
        for begin in range(0, len(images_NHWC), batch):
            images_BHWC = torch.from_numpy(np.array(images_NHWC[begin : begin + batch])).to(default_device())
            outputs = network.forward(normalize(images_BHWC, network.mean, network.std))
            parts.append([output.float().cpu() for output in outputs])
    features, probs = (torch.cat(batches).numpy() for batches in zip(*parts, strict=True))
    return features, probs


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
        os.posix_fallocate(stream.fileno(), stream.tell(), shape[0] * shape[1] * np.dtype(dtype).itemsize)
