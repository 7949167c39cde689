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
    """A frozen model with the preprocessing of its training; `sha256` covers its weights and its architecture."""

    forward: Callable[[Tensor], tuple[Tensor, Tensor]]
    input_px: int
    mean: Triple
    std: Triple
    sha256: str

    def facts(self) -> dict[str, Any]:
        """The network's entry in weigh/sources.json."""
        return {"sha256": self.sha256, "input_px": self.input_px, "mean": self.mean, "std": self.std}


@dataclass(frozen=True, kw_only=True)
class SourceOutputs:
    """One source's outputs on every image, on disk in `folder`.

    Mapped on every access: maps kept for thousands of shards would exceed the limit of open files.
    """

    folder: Path

    @property
    def features_ND(self) -> Arrays:
        """float32, [N, D]."""
        return _mapped(self.folder, "features")

    @property
    def probs_NK(self) -> Arrays:
        """float16, rows sum to 1, [N, K]."""
        return _mapped(self.folder, "probs")


def _mapped(folder: Path, name: str) -> Arrays:
    return np.asanyarray(np.load(folder / f"{name}.npy", mmap_mode="r"))


def compute_outputs(
    net: Network,
    images: Callable[[int], Arrays],
    data_hash: str,
    cache: Path,
    progress: Callable[[int], object] = lambda done: None,
    call: Callable[..., object] | None = None,
) -> SourceOutputs:
    """Compute the source's outputs on every image, or read them from the cache; an interrupted pass is resumed.

    Args:
        net: the source.
        images: function of an input size in pixels that returns uint8 [N, px, px, 3].
        data_hash: hash of those images, in order; with the source's hash and preprocessing it is the cache key.
        cache: the folder of all source outputs.
        progress: called with the number of images done since the last call.
        call: called with `start`, the first image without outputs, before the computation: the other processes of a
            training then call `assist` from there. Without it this process works alone.
    """
    view = {"px": net.input_px, "mean": net.mean, "std": net.std}
    folder = cache / digest([net.sha256, data_hash, view])[:32]
    meta = folder / "done.json"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # concurrent runs share the cache: one computes, the others wait
        outputs = _opened(folder) if meta.exists() else None
        if outputs is None:
            meta.unlink(missing_ok=True)
            _compute(net, images(net.input_px), folder=folder, progress=progress, call=call)
            write_json(meta, view)
            outputs = _opened(folder)
    assert outputs is not None, "outputs that were just written can be read"
    return outputs


def _opened(folder: Path) -> SourceOutputs | None:
    """A cache entry; None if one of its two files is missing or damaged."""
    try:
        for name in ("features", "probs"):
            _mapped(folder, name)
    except (FileNotFoundError, ValueError, EOFError):
        return None
    return SourceOutputs(folder=folder)


def _compute(
    net: Network,
    images_NHWC: Arrays,
    folder: Path,
    progress: Callable[[int], object],
    call: Callable[..., object] | None,
) -> None:
    """Write the outputs round by round into two arrays on disk; `at.json` holds the number of finished images."""
    total, position_file = len(images_NHWC), folder / "at.json"
    start = int(read_json(position_file)) if position_file.exists() and _opened(folder) is not None else 0
    start = start if start < total else 0  # all images finished but no complete entry: it was damaged
    progress(start)
    if call:
        call(start=start)
    for begin, features_BD, probs_BK in rounds(
        net, images_NHWC, start, processes.team() if call else processes.SINGLE_PROCESS
    ):
        if not (np.isfinite(features_BD).all() and np.isfinite(probs_BK).all()):
            raise InputError("its features or probabilities are not finite", "check its weights, mean and std")
        for name, part, kind in (("features", features_BD, np.float32), ("probs", probs_BK, np.float16)):
            path = folder / f"{name}.npy"
            if not begin:
                _reserve(path, kind, (total, part.shape[1]))
            array = np.lib.format.open_memmap(path, mode="r+")
            array[begin : begin + len(part)] = part
            array.flush()
        write_json(position_file, begin + len(features_BD))
        progress(len(features_BD))


def rounds(net: Network, images_NHWC: Arrays, start: int, team: processes.Team) -> Iterator[tuple[int, Arrays, Arrays]]:
    """Yield per round the first row, and features and probabilities of its images; a round is a chunk per process."""
    total = len(images_NHWC)
    for begin in range(start, total, CHUNK * team.size):
        own = begin + CHUNK * team.rank
        own_outputs = infer(net, images_NHWC[own : own + CHUNK]) if own < total else None
        parts = [own_outputs] if team == processes.SINGLE_PROCESS else processes.all_gather(own_outputs)
        features, probs = zip(*(part for part in parts if part is not None), strict=True)
        yield begin, np.concatenate(features), np.concatenate(probs)


def assist(net: Network, images_NHWC: Arrays, start: int) -> None:
    """Take part in the rounds whose outputs the leader writes."""
    for _ in rounds(net, images_NHWC, start, processes.team()):
        pass


def _reserve(path: Path, kind: type[np.floating[Any]], shape: tuple[int, int]) -> None:
    """Create a .npy file of zeros with all blocks allocated: on a full disk a write to a sparse map raises a signal."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(kind)), "fortran_order": False, "shape": shape}
    with path.open("wb") as stream:
        np.lib.format.write_array_header_2_0(stream, header)
        stream.flush()
        os.posix_fallocate(stream.fileno(), stream.tell(), shape[0] * shape[1] * np.dtype(kind).itemsize)


def infer(net: Network, images_NHWC: Arrays, batch: int = 64) -> tuple[Arrays, Arrays]:
    """Run the source on uint8 [N, px, px, 3] in batches; return features_ND and probs_NK in float32."""
    import torch

    from edgedistill.data.pixels import normalize

    parts = []
    with torch.inference_mode():
        for begin in range(0, len(images_NHWC), batch):
            images_BHWC = torch.from_numpy(np.array(images_NHWC[begin : begin + batch])).to(default_device())
            outputs = net.forward(normalize(images_BHWC, net.mean, net.std))
            parts.append([output.float().cpu() for output in outputs])
    features, probs = (torch.cat(batches).numpy() for batches in zip(*parts, strict=True))
    return features, probs
