"""Sources on a GPU: bfloat16, in entries of their own in the cache, and as many images at a time as fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from edgedistill.distributed import device
from edgedistill.errors import InputError
from edgedistill.sources import outputs
from edgedistill.sources.outputs import Network, cached_outputs
from tests.helpers.stand_in_gpu import stand_in_gpu
from tests.sources.test_outputs import IMAGES, check, compute, network

KEY = ("sha", 8)


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "FITTING", {})


@pytest.fixture
def gpu() -> Iterator[None]:
    with stand_in_gpu():
        yield


def filling(sizes: list[int], most: int) -> Network:
    """The network of the outputs' tests on a GPU that holds `most` images; `sizes` collects those that were tried."""
    whole = network([])

    def forward(images_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        sizes.append(len(images_BCHW))
        if len(images_BCHW) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return whole.forward(images_BCHW)

    return replace(whole, forward=forward)


def linear() -> Network:
    """A linear layer, which autocast makes bfloat16; its features are 1/3 times the channels."""
    layer = nn.Linear(3, 2)
    nn.init.constant_(layer.weight, 1 / 3)
    nn.init.zeros_(layer.bias)

    def forward(images_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features_BD = layer(images_BCHW.mean(dim=(2, 3)))
        return features_BD, features_BD.softmax(dim=1)

    return replace(network([]), forward=forward)


def test_forward_pass_is_bfloat16_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *args, **settings: True)
    # torch 2.10 makes a real tensor there first
    monkeypatch.setattr("torch._subclasses.fake_tensor.init_gpu_context", lambda *args: None, raising=False)
    with FakeTensorMode():
        for where, dtype in (("cuda", torch.bfloat16), ("cpu", torch.float32)):
            kernels, pixels = torch.empty(4, 3, 3, 3, device=where), torch.empty(2, 3, 8, 8, device=where)
            with device.autocast(torch.device(where), "auto"):
                features = torch.nn.functional.conv2d(pixels, kernels)
                assert features.dtype == dtype and features.device.type == where
                assert features.flatten(1).softmax(dim=1).dtype == torch.float32


def test_bfloat16_is_stored_as_float32_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = compute(linear(), tmp_path / "exact")
    monkeypatch.setattr(outputs, "is_reduced", lambda where, precision: True)
    monkeypatch.setattr(outputs, "autocast", lambda where, precision: torch.autocast("cpu", torch.bfloat16))
    reduced = compute(linear(), tmp_path / "reduced")
    assert reduced.probs_NK is not None
    assert (reduced.features_ND.dtype, reduced.probs_NK.dtype) == (np.float32, np.float16)
    assert not np.array_equal(reduced.features_ND, exact.features_ND)
    np.testing.assert_allclose(reduced.features_ND, exact.features_ND, rtol=2**-6)
    # rows are those of bfloat16: eight bits of mantissa
    assert (reduced.features_ND.view(np.uint32) & 0xFFFF == 0).all()


def test_outputs_of_a_gpu_are_not_taken_for_those_of_a_cpu(tmp_path: Path) -> None:
    net, facts = network([]), network([]).facts()
    with stand_in_gpu():
        on_gpu = compute(net, tmp_path)
        check(on_gpu)
    assert "bfloat16" in (on_gpu.folder / "done.json").read_text()
    cached = cached_outputs(facts, "data", tmp_path)
    assert cached is not None and cached.folder == on_gpu.folder, "without torch any precision will do"
    on_cpu = compute(net, tmp_path)
    assert on_gpu.folder != on_cpu.folder
    cached = cached_outputs(facts, "data", tmp_path)
    assert cached is not None and cached.folder == on_cpu.folder
    assert "precision" not in (on_cpu.folder / "done.json").read_text()


@pytest.mark.parametrize("precision", ["auto", "float32"])
def test_precision_is_that_of_the_call(precision: device.Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[device.Precision] = []
    autocast = outputs.autocast
    monkeypatch.setattr(
        outputs, "autocast", lambda where, precision: (asked.append(precision), autocast(where, precision))[1]
    )
    outputs.infer(network([]), IMAGES, precision=precision)
    assert asked == [precision]


def test_batch_is_halved_until_it_fits_and_that_is_remembered(
    gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(outputs, "CHUNK", 12)
    sizes: list[int] = []
    check(compute(filling(sizes, most=4), tmp_path))
    # rounds of 12 and of 11 images
    assert sizes == [12, 6, 3, 3, 3, 3, 3, 3, 3, 2] and outputs.FITTING == {KEY: 3}
    text = " ".join("".join(capsys.readouterr()).split())
    assert "does not hold 12 images of 8 px: from here on 6 at a time" in text
    sizes.clear()
    outputs.infer(filling(sizes, most=4), IMAGES)
    assert max(sizes) == 3


def test_gpu_takes_more_images_at_a_time_than_a_cpu() -> None:
    on_cpu: list[int] = []
    outputs.infer(network(on_cpu), np.tile(IMAGES, (20, 1, 1, 1)))
    with stand_in_gpu():
        on_gpu: list[int] = []
        outputs.infer(network(on_gpu), np.tile(IMAGES, (20, 1, 1, 1)))
    assert (max(on_cpu), max(on_gpu)) == (64, 256)


def test_gpu_that_holds_no_image_is_said(gpu: None) -> None:
    with pytest.raises(InputError, match="does not hold one image of 8 px; end what else"):
        outputs.infer(filling([], most=0), IMAGES)


def test_other_errors_are_not_taken_for_a_full_memory(gpu: None) -> None:
    def fail(images_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raise RuntimeError("CUDA error: device-side assert triggered")

    with pytest.raises(RuntimeError, match="device-side"):
        outputs.infer(replace(network([]), forward=fail), IMAGES)
