"""Source outputs on disk: computed once, resumed after a kill, and stored separately for each source and data set."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgedistill.errors import InputError
from edgedistill.sources import outputs
from edgedistill.sources.outputs import Network, SourceOutputs, cached_outputs, compute_outputs

IMAGES = np.random.default_rng(0).integers(0, 256, (23, 8, 8, 3), dtype=np.uint8)
ZERO, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def network(batch_sizes: list[int], dies_after: int = 10**6) -> Network:
    """A source whose features are the mean of every color and whose class scores are their softmax.

    `batch_sizes` collects the number of images of each call.
    """

    def forward(images_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if sum(batch_sizes) >= dies_after:
            raise KeyboardInterrupt
        batch_sizes.append(len(images_BCHW))
        features_BD = images_BCHW.mean(dim=(2, 3))
        return features_BD, features_BD.softmax(dim=1)

    return Network(forward=forward, input_px=8, mean=ZERO, std=ONE, sha256="sha")


def compute(
    net: Network, cache: Path, data_hash: str = "data", progress: Callable[[int], object] = lambda count: None
) -> SourceOutputs:
    return compute_outputs(net, lambda px: IMAGES, data_hash=data_hash, cache=cache, progress=progress)


def check(source_outputs: SourceOutputs) -> None:
    expected = IMAGES.mean(axis=(1, 2)) / 255.0
    np.testing.assert_allclose(source_outputs.features_ND, expected, atol=1e-6)
    raised = np.exp(expected)
    expected_NK = raised / raised.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(source_outputs.probs_NK, expected_NK, atol=1e-3)  # float16


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "CHUNK", 5)


def test_outputs_equal_those_of_the_network(tmp_path: Path) -> None:
    batch_sizes: list[int] = []
    steps: list[int] = []
    source_outputs = compute(network(batch_sizes), tmp_path, progress=steps.append)
    check(source_outputs)
    assert isinstance(source_outputs.features_ND, np.memmap) and not source_outputs.features_ND.flags.writeable
    assert batch_sizes == [5, 5, 5, 5, 3] and sum(steps) == 23


def test_second_call_reads_neither_network_nor_images(tmp_path: Path) -> None:
    compute(network([]), tmp_path)

    def refuse(px: int) -> np.ndarray:
        raise AssertionError("the images were read again")

    check(compute_outputs(network([], dies_after=0), refuse, "data", tmp_path))


@pytest.mark.parametrize("dies_after", [0, 5, 15, 20])
def test_killed_pass_resumes_where_it_stopped(tmp_path: Path, dies_after: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        compute(network([], dies_after), tmp_path)
    batch_sizes: list[int] = []
    steps: list[int] = []
    check(compute(network(batch_sizes), tmp_path, progress=steps.append))
    assert sum(batch_sizes) == 23 - dies_after and sum(steps) == 23


def test_images_are_read_at_the_size_of_the_network(tmp_path: Path) -> None:
    sizes_px: list[int] = []

    def images(px: int) -> np.ndarray:
        sizes_px.append(px)
        return IMAGES

    compute_outputs(network([]), images, "data", tmp_path)
    assert sizes_px == [8]


@pytest.mark.parametrize(
    "change", [{"input_px": 16}, {"mean": (0.1, 0.0, 0.0)}, {"std": (1.0, 2.0, 1.0)}, {"sha256": "other"}], ids=str
)
def test_another_view_or_network_gets_its_own_entry(tmp_path: Path, change: dict[str, object]) -> None:
    compute(network([]), tmp_path)
    batch_sizes: list[int] = []
    compute(replace(network(batch_sizes), **change), tmp_path)  # type: ignore[arg-type]
    assert sum(batch_sizes) == 23
    batch_sizes_of_original: list[int] = []
    check(compute(network(batch_sizes_of_original), tmp_path))
    assert batch_sizes_of_original == []


def test_other_images_get_their_own_entry(tmp_path: Path) -> None:
    compute(network([]), tmp_path)
    batch_sizes: list[int] = []
    compute(network(batch_sizes), tmp_path, data_hash="other data")
    assert sum(batch_sizes) == 23


@pytest.mark.parametrize("damage", ["features.npy", "probs.npy", "short"])
def test_damaged_entry_is_computed_again(tmp_path: Path, damage: str) -> None:
    compute(network([]), tmp_path)
    (entry,) = (path for path in tmp_path.iterdir() if path.is_dir())
    if damage == "short":
        (entry / "features.npy").write_bytes((entry / "features.npy").read_bytes()[:100])
    else:
        (entry / damage).unlink()
    check(compute(network([]), tmp_path))


def test_non_finite_source_is_an_input_error(tmp_path: Path) -> None:
    def forward(images_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images_BCHW.mean(dim=(2, 3)) * float("nan"), images_BCHW.mean(dim=(2, 3))

    with pytest.raises(InputError, match="features or probabilities are not finite"):
        compute(replace(network([]), forward=forward), tmp_path)


def test_full_disk_is_an_error_before_any_mapping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        compute(network([]), tmp_path)
    monkeypatch.undo()
    check(compute(network([]), tmp_path))


def test_system_without_posix_fallocate_writes_zeros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate")  # as on macOS
    monkeypatch.setattr(outputs, "WRITTEN", 100)
    check(compute(network([]), tmp_path))


def test_cached_outputs_need_no_network(tmp_path: Path) -> None:
    net = network([])
    facts = json.loads(json.dumps(net.facts()))  # as weigh/sources.json has them
    assert cached_outputs(facts, "data", tmp_path) is None
    computed = compute(net, tmp_path)
    cached = cached_outputs(facts, "data", tmp_path)
    assert cached is not None
    np.testing.assert_array_equal(cached.features_ND, computed.features_ND)
    assert cached_outputs(facts, "other data", tmp_path) is None
    assert cached_outputs({**facts, "mean": [0.5, 0.5, 0.5]}, "data", tmp_path) is None
    (computed.folder / "features.npy").write_bytes(b"")
    assert cached_outputs(facts, "data", tmp_path) is None
