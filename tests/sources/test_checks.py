"""What a source must answer: shapes, finite features, and probabilities; one line for everything else."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

from edgedistill.errors import InputError
from edgedistill.recipe.schema import Source
from edgedistill.run.files import sha256_file
from edgedistill.sources import registry
from edgedistill.sources.checks import checked_network
from edgedistill.sources.outputs import Network, infer
from edgedistill.sources.registry import fingerprint, load

NET = "test_resnet"
Forward = Callable[[torch.Tensor], object]
Change = Callable[[torch.Tensor], torch.Tensor]


def network(forward: Forward) -> Network:
    return Network(forward=forward, input_px=8, mean=(0.0,) * 3, std=(1.0,) * 3, sha256="ab")  # type: ignore[arg-type]


def features(images_BCHW: torch.Tensor) -> torch.Tensor:
    return images_BCHW.mean(dim=(2, 3))


def probs(images_BCHW: torch.Tensor) -> torch.Tensor:
    return features(images_BCHW).softmax(dim=1)


def pair(
    change_features: Change = lambda array: array, change_probs: Change = lambda array: array
) -> Callable[[torch.Tensor], object]:
    return lambda images: (change_features(features(images)), change_probs(probs(images)))


def refusal(forward: Forward) -> str:
    with pytest.raises(InputError) as caught:
        checked_network(network(forward), "birds")
    message = str(caught.value)
    assert message.startswith("sources.birds: ") and "; " in message and "\n" not in message
    return message


def images(n: int = 3) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)


def test_sound_network_is_returned_as_it_is() -> None:
    sound = network(pair())
    assert checked_network(sound, "birds") is sound
    half = network(pair(lambda array: array.half(), lambda array: array.half()))
    assert checked_network(half, "birds") is half


def test_trailing_dimensions_of_one_are_squeezed() -> None:
    squeezed = checked_network(network(pair(lambda a: a[:, :, None, None], lambda a: a[:, :, None, None])), "birds")
    for array, expected in zip(infer(squeezed, images()), infer(network(pair()), images()), strict=True):
        np.testing.assert_array_equal(array, expected)
    assert squeezed.sha256 == "ab"


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (pair(lambda a: a[:, :, None]), r"answers with \(2, 3, 1\) for features \[B, D\]; pool it"),
        (pair(lambda a: a[:, :, None, None].expand(-1, -1, 2, 2)), r"\(2, 3, 2, 2\) for features"),
        (pair(change_probs=lambda a: a[None]), r"\(1, 2, 3\) for classes \[B, K\]"),
        (pair(lambda a: a[:1]), r"\(1, 3\) for features \[B, D\] of 2 images; export it with a batch"),
        (pair(change_probs=lambda a: a[:1]), r"\(1, 3\) for classes \[B, K\] of 2 images"),
        (pair(lambda a: a / 0), r"features \(2, 3\) are not finite"),
        (pair(change_probs=lambda a: a * float("nan")), r"class probabilities \(2, 3\) are not finite"),
        (pair(change_probs=lambda a: a * 2), r"classes \(2, 3\) are no probabilities: .* a sum is 2; set `logits"),
        (pair(change_probs=lambda a: a + torch.tensor([1.0, 0.0, -1.0])), "are no probabilities: the least is -"),
        (pair(change_probs=lambda a: a[:, :1]), r"\(2, 1\): one output .* \[1 - p, p\]"),
        (pair(change_probs=lambda a: a[:, :1] * 0 + 1), r"\(2, 1\): one output"),
        (pair(change_probs=lambda a: a[:, 0]), r"\(2,\): one output"),
    ],
)
def test_other_answers_are_refused(forward: Forward, message: str) -> None:
    with pytest.raises(InputError, match=message):
        checked_network(network(forward), "birds")
    assert "set input_px" not in refusal(forward)


@pytest.mark.parametrize(
    ("forward", "answer"),
    [
        (features, r"a Tensor ((2, 3))"),
        (lambda images: (images, (images, images)), "a tuple ((2, 3, 8, 8), tuple)"),
        (lambda images: (features(images), probs(images), probs(images)), "a tuple ((2, 3), (2, 3), (2, 3))"),
        (lambda images: (images, images).softmax(), "AttributeError: 'tuple' object"),
    ],
)
def test_tuples_get_no_advice_about_the_size(forward: Forward, answer: str) -> None:
    message = refusal(forward)
    assert answer in message and "set input_px" not in message and "use another model" in message


def test_network_of_another_size_gets_advice_about_the_size() -> None:
    assert "(RuntimeError: " in (message := refusal(lambda images: torch.ones(4) + torch.ones(3)))
    assert message.endswith("set input_px, or use another model")


def graph(path: Path, softmax: bool, classes: int = 3, squeeze: bool = True) -> Path:
    """Write a graph from [B, 3, 8, 8] to the means of the colors times a matrix, with or without a softmax."""
    matrix = np.arange(3 * classes, dtype=np.float32).reshape(3, classes, 1, 1)
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["means"], axes=[2, 3], keepdims=int(not squeeze)),
        helper.make_node("MatMul", ["means", "matrix"], ["scores"])
        if squeeze
        else helper.make_node("Conv", ["means", "matrix"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probs"], axis=1)
        if softmax
        else helper.make_node("Neg", ["scores"], ["probs"]),
    ]
    weights = matrix[:, :, 0, 0] if squeeze else matrix.transpose(1, 0, 2, 3)
    shape = ["B", classes] if squeeze else ["B", classes, 1, 1]
    body = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["B", 3, 8, 8])],
        [helper.make_tensor_value_info("probs", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.ascontiguousarray(weights), "matrix")],
    )
    onnx.save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def source(**options: object) -> Source:
    return Source.model_validate({"name": "birds", **options})


def test_graph_with_a_softmax_gets_no_second_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    graph(tmp_path / "net.onnx", softmax=True)
    preprocessing = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5)}
    noticed = load(source(kind="onnx", file="net.onnx", **preprocessing), tmp_path)
    assert caplog.messages == ["sources.birds: its class output already is a softmax and gets no second one"]
    stated = load(source(kind="onnx", file="net.onnx", logits=False, **preprocessing), tmp_path)
    assert len(caplog.messages) == 1
    for array, expected in zip(infer(noticed, images()), infer(stated, images()), strict=True):
        np.testing.assert_array_equal(array, expected)
    # one identity for one content: the cache cannot answer with the outputs of a second softmax
    assert noticed.facts() == stated.facts()


def test_graph_of_logits_keeps_its_softmax_and_hash(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = graph(tmp_path / "net.onnx", softmax=False)
    section = source(kind="onnx", file="net.onnx")
    net = load(section, tmp_path)
    assert net.sha256 == registry.digest([sha256_file(file), ["probs"], True]) and caplog.messages == []
    np.testing.assert_allclose(infer(net, images())[1].sum(axis=1), 1.0, atol=1e-5)
    with pytest.raises(
        InputError, match=r"sources\.birds: its classes \(2, 3\) are no probabilities: .*`logits: true`"
    ):
        load(source(kind="onnx", file="net.onnx", logits=False), tmp_path)
    assert fingerprint(section, tmp_path) == fingerprint(source(kind="onnx", file="net.onnx"), tmp_path)


@pytest.mark.parametrize("softmax", [False, True])
def test_graph_with_trailing_dimensions_is_squeezed(tmp_path: Path, softmax: bool) -> None:
    for name, squeeze in (("flat.onnx", True), ("deep.onnx", False)):
        graph(tmp_path / name, softmax=softmax, squeeze=squeeze)
    flat, deep = (infer(load(source(kind="onnx", file=f"{n}.onnx"), tmp_path), images()) for n in ("flat", "deep"))
    for array, expected in zip(deep, flat, strict=True):
        np.testing.assert_allclose(array, expected, atol=1e-5)


@pytest.mark.parametrize("logits", [False, True])
def test_graph_of_one_output_is_refused(tmp_path: Path, logits: bool) -> None:
    graph(tmp_path / "net.onnx", softmax=False, classes=1)
    with pytest.raises(InputError, match=r"its classes are \(2, 1\): one output .*two classes"):
        load(source(kind="onnx", file="net.onnx", logits=logits), tmp_path)


def test_graph_of_one_number_for_each_image_is_refused(tmp_path: Path) -> None:
    body = helper.make_graph(
        [helper.make_node("ReduceMean", ["images"], ["score"], axes=[1, 2, 3], keepdims=0)],
        "net",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["B", 3, 8, 8])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["B"])],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(InputError, match=r"its classes are \(2,\): one output .*two classes"):
        load(source(kind="onnx", file="net.onnx"), tmp_path)


def test_weights_of_one_output_are_refused(tmp_path: Path) -> None:
    save_file(timm.create_model(NET, num_classes=1).state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"sources\.birds: its classes are \(2, 1\): one output"):
        load(source(kind="weights", file="a.safetensors", model=NET), tmp_path)


def test_model_with_several_classifiers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = timm.create_model(NET)
    monkeypatch.setattr(net, "get_classifier", lambda: (net.fc, net.fc))
    monkeypatch.setattr(timm, "create_model", lambda *args, **options: net)
    with pytest.raises(InputError, match=r"sources\.birds: has a tuple of classifiers, not one; use another model"):
        load(source(kind="timm", model=NET, pretrained=False), tmp_path)


def test_prefixed_checkpoint_serves_as_source(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = timm.create_model(NET, num_classes=7).state_dict()
    save_file(state, tmp_path / "plain.safetensors")
    prefixed = {f"module.model.{name}": tensor for name, tensor in state.items()}
    save_file(prefixed, tmp_path / "prefixed.safetensors")
    zeros = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    torch.save({"epoch": 1, "state_dict": zeros, "state_dict_ema": prefixed}, tmp_path / "averaged.pth")
    files = ("plain.safetensors", "prefixed.safetensors", "averaged.pth")
    hashes = [load(source(kind="weights", file=file, model=NET), tmp_path).sha256 for file in files]
    assert len(set(hashes)) == 1
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
