"""Headless source models: recognized in every kind, with features and no classes, also in the cache."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from timm.models import get_pretrained_cfg

from edgedistill.errors import InputError
from edgedistill.recipe.schema import Source
from edgedistill.sources import outputs, registry
from edgedistill.sources.checks import EMBEDDING_SIZES, checked_network
from edgedistill.sources.outputs import Network, compute_outputs, infer
from edgedistill.sources.registry import fingerprint, has_classes, load

NET = "test_resnet"
MASKED_AUTOENCODER = "convnextv2_pico.fcmae"  # published without a classifier
CLIP = "vit_xsmall_patch16_clip_224"  # its last layer is the projection onto the embedding that it shares with a text


def source(**options: object) -> Source:
    return Source.model_validate({"name": "birds", **options})


def images(n: int = 3, px: int = 8) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (n, px, px, 3), dtype=np.uint8)


def features_alone(net: Network, px: int) -> np.ndarray:
    """The features of three images, after a check that they are all that the network answers with."""
    features_ND, probs_NK = infer(net, images(px=px))
    assert not net.has_classes and probs_NK is None
    assert net.facts()["features_only"] is True
    return features_ND


def test_published_headless_architecture_gives_features(tmp_path: Path) -> None:
    net = load(source(kind="timm", model=MASKED_AUTOENCODER, pretrained=False, input_px=32), tmp_path)
    assert features_alone(net, 32).shape == (3, 512)


def test_tower_of_an_image_text_model_gives_features(tmp_path: Path) -> None:
    net = load(source(kind="timm", model=CLIP, pretrained=False), tmp_path)
    assert features_alone(net, 224).shape == (3, 256)  # what enters the projection onto 512 numbers
    save_file(timm.create_model(CLIP).state_dict(), tmp_path / "tower.safetensors")
    assert not load(source(kind="weights", file="tower.safetensors", model=CLIP), tmp_path).has_classes
    save_file(timm.create_model(CLIP, num_classes=5).state_dict(), tmp_path / "tuned.safetensors")
    tuned = load(source(kind="weights", file="tuned.safetensors", model=CLIP), tmp_path)
    probs_NK = infer(tuned, images(px=224))[1]
    assert tuned.has_classes and probs_NK is not None and probs_NK.shape == (3, 5)


def test_only_towers_end_with_an_embedding_in_timm() -> None:
    towers = re.compile("clip|vitamin|_pe_core_|mci")
    sizes = {name: get_pretrained_cfg(name).num_classes for name in timm.list_pretrained()}
    assert sum(size in EMBEDDING_SIZES for size in sizes.values()) > 100
    assert [name for name, size in sizes.items() if size in EMBEDDING_SIZES and not towers.search(name)] == []
    assert {size for size in sizes.values() if size and size < 1000} <= EMBEDDING_SIZES


@pytest.mark.parametrize("names", ["own", "prefixed", "others"])
def test_weights_file_without_classifier_gives_features(tmp_path: Path, names: str) -> None:
    model = timm.create_model(NET, num_classes=0).eval()
    state = {name: tensor for name, tensor in model.state_dict().items() if "num_batches" not in name}
    if names == "prefixed":
        state = {f"module.{name}": tensor for name, tensor in state.items()}
    if names == "others":
        state = {f"net.{index:03d}": tensor for index, tensor in enumerate(state.values())}
    save_file(state, tmp_path / "a.safetensors")
    net = load(source(kind="weights", file="a.safetensors", model=NET, mean=(0.0,) * 3, std=(1.0,) * 3), tmp_path)
    scaled_BCHW = torch.from_numpy(images(px=32).transpose(0, 3, 1, 2) / 255.0).float()
    with torch.no_grad():
        expected_ND = model(scaled_BCHW).numpy()
    np.testing.assert_allclose(features_alone(net, 32), expected_ND, atol=1e-5)


def test_headless_and_complete_weights_have_other_hashes(tmp_path: Path) -> None:
    model = timm.create_model(NET, num_classes=7)
    save_file(model.state_dict(), tmp_path / "complete.safetensors")
    model.reset_classifier(0)
    save_file(model.state_dict(), tmp_path / "headless.safetensors")
    complete, headless = (
        load(source(kind="weights", file=f"{name}.safetensors", model=NET), tmp_path)
        for name in ("complete", "headless")
    )
    assert complete.has_classes and not headless.has_classes and complete.sha256 != headless.sha256
    assert "features_only" not in complete.facts()


@pytest.mark.parametrize(
    ("model", "expected"),
    [("vit_small_patch14_dinov2.lvd142m", False), ("vit_base_patch16_clip_224.openai", False), ("resnet18", True)],
)
def test_published_model_is_known_to_be_headless_before_a_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, expected: bool
) -> None:
    monkeypatch.setattr(registry, "hub_problem", lambda model: "")
    assert has_classes(source(kind="timm", model=model), tmp_path) is expected


def graph(path: Path, pooled: bool = True) -> Path:
    """Write a graph from [B, 3, 8, 8] to the outputs `means` [B, 3, 1, 1] or [B, 3] and `scores` [B, 4]."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["deep"]),
        helper.make_node("Flatten", ["deep"], ["means"])
        if pooled
        else helper.make_node("Identity", ["deep"], ["means"]),
        helper.make_node("Flatten", ["deep"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["scores"]),
    ]
    shapes = {"means": ["B", 3] if pooled else ["B", 3, 1, 1], "scores": ["B", 4]}
    body = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["B", 3, 8, 8])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(3, 4), "matrix")],
    )
    onnx.save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def color_means() -> np.ndarray:
    return np.asarray(images().mean(axis=(1, 2)) / 255.0)


@pytest.mark.parametrize("pooled", [True, False], ids=["flat", "deep"])
@pytest.mark.parametrize("options", [{}, {"features": "means"}], ids=str)
def test_headless_graph_gives_features(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, pooled: bool, options: dict[str, str]
) -> None:
    graph(tmp_path / "net.onnx", pooled)
    section = source(kind="onnx", file="net.onnx", headless=True, mean=(0.0,) * 3, std=(1.0,) * 3, **options)
    np.testing.assert_allclose(features_alone(load(section, tmp_path), 8), color_means(), atol=1e-5)
    assert caplog.messages == []


def test_graph_with_features_for_scores_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = graph(tmp_path / "net.onnx")
    by_default = load(source(kind="onnx", file="net.onnx"), tmp_path)
    assert caplog.messages == [
        f"{file}: means comes from GlobalAveragePool, as features do, and is taken for class scores; set "
        "`headless: true` if it holds features, or name it in `probabilities`"
    ]
    named = load(source(kind="onnx", file="net.onnx", probabilities="means"), tmp_path)
    scores = load(source(kind="onnx", file="net.onnx", probabilities="scores", features="means"), tmp_path)
    assert len(caplog.messages) == 1 and by_default.sha256 == named.sha256 != scores.sha256
    assert by_default.has_classes and scores.has_classes


def test_headless_graph_has_a_hash_of_its_own(tmp_path: Path) -> None:
    graph(tmp_path / "net.onnx")
    options: list[dict[str, object]] = [{"headless": True}, {"probabilities": "means"}, {"features": "means"}]
    nets = [load(source(kind="onnx", file="net.onnx", **chosen), tmp_path) for chosen in options]
    assert len({net.sha256 for net in nets}) == 3
    plain = fingerprint(source(kind="onnx", file="net.onnx"), tmp_path)
    assert fingerprint(source(kind="onnx", file="net.onnx", headless=False), tmp_path) == plain
    assert fingerprint(source(kind="onnx", file="net.onnx", headless=True), tmp_path) != plain


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probabilities": "scores"}, "`probabilities` and `headless: true` exclude each other; leave out one of them"),
        ({"features": "mean"}, "has no output mean; did you mean means?"),
    ],
)
def test_problems_of_a_headless_graph(tmp_path: Path, options: dict[str, str], message: str) -> None:
    graph(tmp_path / "net.onnx")
    with pytest.raises(InputError, match=re.escape(message)):
        load(source(kind="onnx", file="net.onnx", headless=True, **options), tmp_path)


def means_of(images_BCHW: torch.Tensor) -> tuple[torch.Tensor, None]:
    return images_BCHW.mean(dim=(2, 3)), None


HEADLESS = Network(
    forward=means_of,
    input_px=8,
    mean=(0.0,) * 3,
    std=(1.0,) * 3,
    sha256="ab",
    has_classes=False,  # type: ignore[arg-type]
)


def test_answer_must_be_as_declared() -> None:
    assert checked_network(HEADLESS, "birds") is HEADLESS
    with pytest.raises(InputError, match=r"returns a tuple \(\(2, 3\), NoneType\), not features \[B, D\] and classes"):
        checked_network(replace(HEADLESS, has_classes=True), "birds")
    with pytest.raises(InputError, match=r"returns a tuple \(\(2, 3\), \(2, 3\)\), not features \[B, D\] and None"):
        checked_network(replace(HEADLESS, forward=lambda images: (means_of(images)[0],) * 2), "birds")
    with pytest.raises(InputError, match=r"features \(2, 3\) are not finite"):
        checked_network(replace(HEADLESS, forward=lambda images: (means_of(images)[0] / 0, None)), "birds")
    with pytest.raises(InputError, match=r"gives no features for an image of 8 px \(RuntimeError: "):
        checked_network(replace(HEADLESS, forward=lambda images: torch.ones(4) + torch.ones(3)), "birds")


def test_cache_holds_features_alone_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "CHUNK", 5)
    seen_images: list[int] = []

    def killed(images_BCHW: torch.Tensor) -> tuple[torch.Tensor, None]:
        if len(seen_images) == 2:
            raise KeyboardInterrupt
        seen_images.append(len(images_BCHW))
        return means_of(images_BCHW)

    all_images = images(23)
    with pytest.raises(KeyboardInterrupt):
        compute_outputs(replace(HEADLESS, forward=killed), lambda px: all_images, "data", tmp_path)
    progress: list[int] = []
    resumed = compute_outputs(HEADLESS, lambda px: all_images, "data", tmp_path, progress=progress.append)
    assert progress[0] == 10 and sum(progress) == 23
    np.testing.assert_allclose(resumed.features_ND, all_images.mean(axis=(1, 2)) / 255.0, atol=1e-6)
    assert resumed.probs_NK is None and resumed.rows(np.array([2, 1]))[1] is None
    assert [path.name for path in tmp_path.rglob("*.npy")] == ["features.npy"]
    reopened = compute_outputs(replace(HEADLESS, forward=killed), lambda px: all_images, "data", tmp_path)
    np.testing.assert_array_equal(reopened.features_ND, resumed.features_ND)
