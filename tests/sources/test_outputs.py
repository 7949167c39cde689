"""Source outputs on disk: computed once, resumed after a kill, never mixed up."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgedistill.errors import InputError
from edgedistill.sources import outputs
from edgedistill.sources.outputs import Network, SourceOutputs, compute_outputs

IMAGES = np.random.default_rng(0).integers(0, 256, (23, 8, 8, 3), dtype=np.uint8)
ZERO, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def network(seen: list[int], dies_after: int = 10**6) -> Network:
    """Features are the mean of every colour, class scores their softmax; notes how many images each call was given."""

    def forward(images_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if sum(seen) >= dies_after:
            raise KeyboardInterrupt
        seen.append(len(images_BCHW))
        features_BD = images_BCHW.mean(dim=(2, 3))
        return features_BD, features_BD.softmax(dim=1)

    return Network(forward=forward, input_px=8, mean=ZERO, std=ONE, sha256="sha")


def compute(
    net: Network, cache: Path, data_hash: str = "data", progress: Callable[[int], object] = lambda done: None
) -> SourceOutputs:
    return compute_outputs(net, lambda px: IMAGES, data_hash=data_hash, cache=cache, progress=progress)


def check(found: SourceOutputs) -> None:
    expected = IMAGES.mean(axis=(1, 2)) / 255.0
    np.testing.assert_allclose(found.features_ND, expected, atol=1e-6)
    raised = np.exp(expected)
    np.testing.assert_allclose(found.probs_NK, raised / raised.sum(axis=1, keepdims=True), atol=1e-3)  # float16


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "CHUNK", 5)


def test_outputs_are_those_of_the_net_for_every_image(tmp_path: Path) -> None:
    seen: list[int] = []
    done: list[int] = []
    found = compute(network(seen), tmp_path, progress=done.append)
    check(found)
    assert isinstance(found.features_ND, np.memmap) and not found.features_ND.flags.writeable
    assert seen == [5, 5, 5, 5, 3] and sum(done) == 23


def test_a_second_call_asks_neither_the_net_nor_the_images(tmp_path: Path) -> None:
    compute(network([]), tmp_path)

    def refuse(px: int) -> np.ndarray:
        raise AssertionError("the images were asked for again")

    check(compute_outputs(network([], dies_after=0), refuse, "data", tmp_path))


@pytest.mark.parametrize("dies_after", [0, 5, 15, 20])
def test_a_killed_pass_goes_on_where_it_stopped(tmp_path: Path, dies_after: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        compute(network([], dies_after), tmp_path)
    seen: list[int] = []
    done: list[int] = []
    check(compute(network(seen), tmp_path, progress=done.append))
    assert sum(seen) == 23 - dies_after and sum(done) == 23


def test_images_are_asked_for_at_the_nets_size(tmp_path: Path) -> None:
    asked: list[int] = []

    def images(px: int) -> np.ndarray:
        asked.append(px)
        return IMAGES

    compute_outputs(network([]), images, "data", tmp_path)
    assert asked == [8]


@pytest.mark.parametrize(
    "change", [{"input_px": 16}, {"mean": (0.1, 0.0, 0.0)}, {"std": (1.0, 2.0, 1.0)}, {"sha256": "other"}], ids=str
)
def test_another_view_or_net_is_another_entry(tmp_path: Path, change: dict[str, object]) -> None:
    compute(network([]), tmp_path)
    seen: list[int] = []
    compute(replace(network(seen), **change), tmp_path)  # type: ignore[arg-type]
    assert sum(seen) == 23
    again: list[int] = []
    check(compute(network(again), tmp_path))
    assert again == []


def test_other_images_are_another_entry(tmp_path: Path) -> None:
    compute(network([]), tmp_path)
    seen: list[int] = []
    compute(network(seen), tmp_path, data_hash="other data")
    assert sum(seen) == 23


@pytest.mark.parametrize("damage", ["features.npy", "probs.npy", "short"])
def test_a_damaged_entry_is_computed_again(tmp_path: Path, damage: str) -> None:
    compute(network([]), tmp_path)
    (entry,) = (path for path in tmp_path.iterdir() if path.is_dir())
    if damage == "short":
        (entry / "features.npy").write_bytes((entry / "features.npy").read_bytes()[:100])
    else:
        (entry / damage).unlink()
    check(compute(network([]), tmp_path))


def test_a_source_that_is_not_finite_is_an_input_error(tmp_path: Path) -> None:
    def forward(images_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images_BCHW.mean(dim=(2, 3)) * float("nan"), images_BCHW.mean(dim=(2, 3))

    with pytest.raises(InputError, match="features or probabilities are not finite"):
        compute(replace(network([]), forward=forward), tmp_path)


def test_a_full_disk_is_an_error_before_anything_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        compute(network([]), tmp_path)
    monkeypatch.undo()
    check(compute(network([]), tmp_path))
