"""The int8 comparison with the peers: options, scores, interleaved timing, and the worker that serves a model."""

from __future__ import annotations

import ast
import io
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.quantize import __main__ as command
from benchmarks.quantize import environments, interleave, score, students
from benchmarks.quantize.environments import Artifact, PeerError
from benchmarks.quantize.peers import serve

OPENVINO = """
import os
__version__ = "fake"
print("a library that prints")
os.system("echo and so does its child")
class Core:
    def read_model(self, path): return self
    def reshape(self, shape): self.shape = shape
    def compile_model(self, model, device, settings): return self
    def create_infer_request(self): return self
    def get_property(self, name): return self
    def get_type_name(self): return "f32"
    def infer(self, inputs, share_inputs):
        assert list(inputs[0].shape) == self.shape, inputs[0].shape
        return [inputs[0].mean(axis=(1, 2))]
"""


def artifact(name: str, path: Path | None = None, **fields: Any) -> Artifact:
    """An int8 artifact of this name, by default at a path of the same name."""
    return Artifact(name=name, path=path or Path(name), precision="int8", **fields)


def quantized() -> onnx.ModelProto:
    """A graph with int8 x as both inputs of an Add and the input of a Neg; their outputs are not quantized."""
    scale = [numpy_helper.from_array(np.array(1, kind), name) for kind, name in ((np.float32, "s"), (np.uint8, "z"))]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("Add", ["d", "d"], ["a"]),
        helper.make_node("Neg", ["d"], ["n"]),
        helper.make_node("Mul", ["a", "n"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    return helper.make_model(helper.make_graph(nodes, "test", ends[:1], ends[1:], scale), ir_version=10)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A student whose logits are the means of an image's channels."""
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["logits"], keepdims=0),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", 4, 4, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])
    axes = numpy_helper.from_array(np.array([1, 2], np.int64), "axes")
    graph = helper.make_graph(nodes, "student", [images], [logits], [axes])
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path := tmp_path / "student.onnx")
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """More images than fit in one query."""
    np.save(path := tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3), dtype=np.uint8))
    return path


def means(images: Path) -> np.ndarray:
    return np.asarray(np.load(images).mean(axis=(1, 2)))


def serve_in_process(messages: list[dict[str, Any]], **variables: str) -> tuple[list[dict[str, Any]], str]:
    """Run a worker process on the messages; returns its replies and its stderr."""
    text = "".join(json.dumps(message) + "\n" for message in messages)
    process = subprocess.run(
        [sys.executable, str(environments.SERVE)],
        input=text,
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
        timeout=120,
        check=True,
    )
    return [json.loads(line) for line in process.stdout.splitlines()], process.stderr


def load_message(model: Path, images: Path, **fields: Any) -> dict[str, Any]:
    return {"load": str(model), "runtime": "onnxruntime", "threads": 1, "images": str(images), **fields}


def test_worker_answers_every_command_until_quit(model: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "logits.npy"
    predict = {"predict": str(images), "out": str(out)}
    messages = [
        load_message(model, images),
        {"warm": 0},
        {"time": 30},
        predict,
        {"sing": 1},
        {"quit": True},
        {"time": 1},
    ]
    (loaded, warm, timed, predicted, unknown), _ = serve_in_process(messages)
    assert loaded["loaded"] == str(model) and set(loaded["facts"]) == {"onnxruntime"}
    assert warm == {"queries": 1} and predicted == {"images": 20}
    assert len(timed["samples_ms"]) == 30 and min(timed["samples_ms"]) > 0
    assert unknown == {"failed": "ValueError: unknown command: sing"}
    logits_NC = np.load(out)
    assert logits_NC.dtype == np.float32
    np.testing.assert_allclose(logits_NC, means(images), rtol=1e-5)


def test_worker_survives_failed_command(model: Path, images: Path, tmp_path: Path) -> None:
    (broken := tmp_path / "broken.onnx").write_bytes(b"no graph")
    simulated = {"predict": str(images), "out": str(tmp_path / "first.npy"), "simulate": True, "first": 3}
    replies, _ = serve_in_process(
        [{"time": 1}, load_message(broken, images), load_message(model, images, simulate=True), simulated]
    )
    assert ["failed" in reply for reply in replies] == [True, True, False, False]
    assert "broken.onnx" in replies[1]["failed"] and "\n" not in replies[1]["failed"]
    assert replies[3] == {"images": 3}
    np.testing.assert_allclose(np.load(tmp_path / "first.npy"), means(images)[:3], rtol=1e-5)


def test_output_of_runtime_is_kept_out_of_replies(model: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "openvino.py").write_text(OPENVINO)
    messages = [
        load_message(model, images, runtime="openvino"),
        {"warm": 0},
        {"time": 2},
        {"predict": str(images), "out": str(tmp_path / "logits.npy"), "first": None},
        load_message(model, images, runtime="openvino", simulate=True),
    ]
    (loaded, warm, timed, predicted, refused), stderr = serve_in_process(messages, PYTHONPATH=str(tmp_path))
    assert loaded["facts"] == {"openvino": "fake", "inference_precision": "f32"}
    assert warm == {"queries": 1} and len(timed["samples_ms"]) == 2 and predicted == {"images": 20}
    assert refused == {"failed": "ValueError: only onnxruntime simulates"}
    assert "a library that prints" in stderr and "and so does its child" in stderr
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), means(images), rtol=1e-5)


def test_timed_queries_use_distinct_images_one_at_a_time(
    monkeypatch: pytest.MonkeyPatch, images: Path, tmp_path: Path
) -> None:
    opened, queries = [], []

    class Fake(serve.Onnxruntime):
        def __init__(self, path: str, threads: int, px: int, simulate: bool) -> None:
            opened.append((path, threads, px, simulate))
            self.version = "fake"

        def __call__(self, images_BHWC: np.ndarray) -> np.ndarray:
            queries.append(images_BHWC)
            return np.zeros((len(images_BHWC), 3))

    monkeypatch.setattr(serve, "RUNTIMES", {"onnxruntime": Fake})
    monkeypatch.setattr(serve, "DISTINCT", 3)
    predict = {"predict": str(images), "out": str(tmp_path / "out.npy"), "simulate": True}
    messages = [
        load_message(Path("a"), images),
        {"warm": 0},
        {"time": 4},
        predict,
        predict,
        load_message(Path("b"), images),
    ]
    serve.serve(io.StringIO("".join(json.dumps(message) + "\n" for message in messages)), replies := io.StringIO())
    assert len(replies.getvalue().splitlines()) == len(messages)
    assert opened == [("a", 1, 4, False), ("a", 1, 4, True), ("b", 1, 4, False)]
    all_NHWC = np.load(images)
    for index, image in zip((0, 1, 2, 0, 1), queries, strict=False):  # the warm query, then the timed ones
        np.testing.assert_array_equal(image, all_NHWC[index : index + 1])
    assert [len(query) for query in queries[5:]] == [16, 4, 16, 4]


def test_predict_gives_logits_or_one_line_failure(model: Path, images: Path, tmp_path: Path) -> None:
    logits_NC, facts = interleave.predict(artifact("fp32", model), images, tmp_path / "out.npy", 2)
    np.testing.assert_allclose(logits_NC, means(images)[:2], rtol=1e-5)
    assert list(facts) == ["onnxruntime"]
    (failing := tmp_path / "python").write_text(
        f"#!{sys.executable}\nimport sys; sys.exit('no room in {tmp_path}/a.so')"
    )
    failing.chmod(0o755)
    with pytest.raises(PeerError, match=r"^exit status 1: no room in a\.so$"):
        interleave.predict(artifact("dies", model, python=failing), images, tmp_path / "no.npy", None)
    with pytest.raises(PeerError, match="NoSuchFile"):
        interleave.predict(artifact("gone", tmp_path / "gone.onnx"), images, tmp_path / "no.npy", None)


def test_models_are_timed_in_turns_and_first_one_rotates(monkeypatch: pytest.MonkeyPatch) -> None:
    opened, warmed, timed = [], [], []

    class Fake:
        def __init__(self, model: Artifact, images: Path) -> None:
            self.name = model.name
            opened.append(model.name)
            if model.name == "never":
                raise PeerError("does not load")

        def __enter__(self) -> Fake:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def request(self, message: dict[str, Any]) -> dict[str, Any]:
            if "warm" in message:
                warmed.append(message["warm"])
                return {}
            timed.append(self.name)
            if self.name == "dies" and len(opened) > 4:
                raise PeerError("died")
            return {"samples_ms": [1.23456] * message["time"]}

    monkeypatch.setattr(interleave, "Worker", Fake)
    models = [artifact(name, simulate=name == "other") for name in ("a", "b", "never", "other")]
    plan = interleave.Plan(processes=2, rounds=2, queries=3, warm=0.5)
    samples, untimed = interleave.time_in_turns(models, Path("images"), plan)
    assert timed == ["a", "b", "b", "a", "b", "a", "a", "b"] and warmed == [0.5] * 4
    assert samples == dict.fromkeys("ab", [[[1.235] * 3] * 2] * 2) and untimed == {"never": "does not load"}
    assert Counter(opened) == {"a": 2, "b": 2, "never": 1}
    opened.clear()
    samples, untimed = interleave.time_in_turns([*models[:2], artifact("dies")], Path("images"), plan)
    assert list(samples) == ["a", "b"] and untimed == {"dies": "died"} and timed.count("dies") == 3


def test_ratio_is_of_medians_of_rounds() -> None:
    assert interleave.ratio([[[6.0, 6.0, 99.0]] * 3] * 3, [[[2.0, 2.0, 1.0]] * 3] * 3) == [3.0, 3.0, 3.0]
    assert interleave.ratio([[[1.0]] * 3] * 3, [[[3.0]] * 3] * 3) == [0.3333] * 3
    base = [[[1.0], [2.0], [2.5]], [[2.5], [3.0], [4.0]], [[1.5], [2.5], [3.5]]]
    middle, low, high = interleave.ratio(base, [[[1.0]] * 3] * 3) or []
    assert middle == 2.5 and 1.0 <= low < middle < high <= 4.0
    assert interleave.ratio([[[2.0]] * 9], [[[1.0]] * 9]) is None


def test_full_plan_gives_an_interval_and_fast_plan_none() -> None:
    def cells(plan: interleave.Plan) -> list[list[list[float]]]:
        return [[[1.0] * plan.queries] * plan.rounds] * plan.processes

    full, fast = interleave.Plan(), command.FAST
    assert full.processes > 1 and interleave.ratio(cells(full), cells(full)) == [1.0, 1.0, 1.0]
    assert interleave.ratio(cells(fast), cells(fast)) is None


def onehot(*labels: int) -> np.ndarray:
    return np.eye(2, dtype=np.float32)[list(labels)]


def test_model_is_scored_against_reference() -> None:
    labels_N, reference_NC = np.array([0, 0, 1, 1]), onehot(0, 0, 1, 0)
    worse = score.model_scores(onehot(0, 1, 1, 0), reference_NC, labels_N)
    # one of four lost, half an image added to each outcome: 1 / 6 +- 1.95996 * sqrt((1 + 1 - 1 / 6) / 36)
    assert worse == {"n_test": 4, "top1": 0.5, "drop_points": [25.0, -27.5634, 60.8967], "agreement": 0.75}
    better = score.model_scores(onehot(0, 0, 1, 1), reference_NC, labels_N)
    assert better["top1"] == 1.0 and better["drop_points"] == [-25.0, -60.8967, 27.5634]
    assert score.model_scores(reference_NC, reference_NC, labels_N)["drop_points"] == [0.0, -32.6661, 32.6661]


def test_size_of_model_is_that_of_its_files(tmp_path: Path) -> None:
    sizes = {"a.onnx": 3000, "a.onnx.data": 5000, "a.bin": 7000, "a.xml": 2000, "b.onnx": 1000}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(bytes(size))
    sizes_mb = {name: score.size_mb(tmp_path / name) for name in ("a.onnx", "a.xml", "b.onnx")}
    assert sizes_mb == {"a.onnx": 0.008, "a.xml": 0.009, "b.onnx": 0.001}


def test_placement_of_onnx_graph(tmp_path: Path) -> None:
    onnx.save(quantized(), tmp_path / "a.onnx")
    assert score.placement(tmp_path / "a.onnx") == {"quantize": 1, "dequantize": 1, "fed": {"Add": 2, "Neg": 1}}


def test_placement_of_openvino_graph(tmp_path: Path) -> None:
    types = ("Parameter", "FakeQuantize", "Convolution", "FakeQuantize", "Add")
    layers = "".join(f'<layer id="{index}" type="{name}"/>' for index, name in enumerate(types))
    ends = ((0, 1), (1, 2), (2, 3), (3, 4), (1, 4), (2, 4))
    edges = "".join(f'<edge from-layer="{source}" to-layer="{target}"/>' for source, target in ends)
    (tmp_path / "a.xml").write_text(f"<net><layers>{layers}</layers><edges>{edges}</edges></net>")
    assert score.placement(tmp_path / "a.xml") == {"fake_quantize": 2, "fed": {"Add": 2, "Convolution": 1}}


def test_default_options() -> None:
    options = command.arguments(["run", "--packs", "here"])
    assert (options.packs, options.runs) == (Path("here"), Path("runs/quantize"))
    assert options.students == students.STUDENTS and options.peers == list(environments.PEERS) and not options.fast
    few = command.arguments(["run", "--packs", "here", "--students", "resnet18", "--peers", "nncf", "--fast"])
    assert (few.students, few.peers, few.fast) == (["resnet18"], ["nncf"], True)
    assert command.arguments(["qat", "--packs", "here"]).cells is None
    distilled = command.arguments(["distilled", "--packs", "here", "--seeds", "3", "4"])
    assert (distilled.bank, distilled.seeds) == (Path("runs/bank"), [3, 4])
    assert {command.arguments([verb, "--packs", "here"]).verb for verb in command.VERBS} == set(command.VERBS)
    assert vars(command.arguments(["table"])) == {"verb": "table"}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "required: verb"),
        (["run"], "required: --packs"),
        (["table", "--packs", "here"], "unrecognized arguments"),
        (["run", "--packs", "here", "--students", "resnet19"], "invalid choice: 'resnet19'"),
        (["run", "--packs", "here", "--peers", "nobody"], "invalid choice: 'nobody'"),
        (["qat", "--packs", "here", "--fast"], "unrecognized arguments"),
    ],
)
def test_wrong_options_are_refused(arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.arguments(arguments)
    assert reason in capsys.readouterr().err


def test_model_that_fails_is_recorded_as_failed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    np.save(tmp_path / "test_labels.npy", np.array([0, 1, 1]))
    logits = {"fp32": onehot(0, 1), "ours": onehot(0, 0)}

    def predict(model: Artifact, images: Path, out: Path, first: int) -> tuple[np.ndarray, dict[str, str]]:
        assert images == tmp_path / "test.npy" and first == 2
        if model.name not in logits:
            raise PeerError("why")
        return logits[model.name], {"runtime": model.name}

    monkeypatch.setattr(interleave, "predict", predict)
    models = [artifact(name) for name in ("fp32", "peer", "ours")]
    failed = {"before": "them"}
    scores = command.score_all(models, tmp_path, out=tmp_path, first=2, failed=failed)
    assert list(scores) == ["fp32", "ours"] and scores["fp32"]["agreement"] == scores["fp32"]["top1"] == 1.0
    assert scores["ours"]["agreement"] == scores["ours"]["top1"] == 0.5
    assert scores["ours"]["runtime"] == {"runtime": "ours"} and failed == {"before": "them", "peer": "why"}
    with pytest.raises(PeerError, match="why"):
        command.score_all(models[1:], tmp_path, out=tmp_path, first=2, failed={})


def test_own_graphs_are_also_run_by_openvino(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    built = environments.Built(python=tmp_path / "python", versions={"openvino": "1", "nncf": "2"}, seconds=1.0)
    monkeypatch.setattr(command, "environment", lambda name, folder: built)
    own = command.in_openvino([artifact(name) for name in ("fp32", "ours", "ours-tensorrt")], tmp_path)
    assert [(entry.name, entry.runtime, entry.python, entry.ours) for entry in own] == [
        ("ours-openvino-reduced", "openvino", built.python, True),
        ("ours-openvino", "openvino", built.python, True),
    ]
    assert all(entry.versions == {"openvino": "1"} for entry in own)


def test_existing_student_is_not_prepared_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    prepared: list[str] = []

    def prepare(folder: Path, name: str) -> None:
        prepared.append(name)
        (folder / "test_labels.npy").touch()

    monkeypatch.setattr(students, "prepare_trained", lambda cell, packs, folder: prepare(folder, cell))
    monkeypatch.setattr(students, "prepare_lite0", lambda packs, folder: prepare(folder, students.LITE0))
    for name in (*students.STUDENTS, *students.STUDENTS):
        assert students.prepare(name, tmp_path, tmp_path / "runs") == tmp_path / "runs" / name
    assert prepared == [students.LITE0, *students.TRAINED.values()]


@pytest.mark.parametrize("name", environments.PEERS)
def test_every_peer_has_environment_runtime_and_script_for_its_mode(name: str) -> None:
    peer = environments.PEERS[name]
    assert peer.environment in environments.ENVIRONMENTS and peer.runtime in serve.RUNTIMES
    assert not peer.simulate or peer.runtime == "onnxruntime"
    tree = ast.parse((environments.SCRIPTS / peer.script).read_text(encoding="utf-8"))
    assert peer.mode in {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert peer.suffix == {"onnxruntime": ".onnx", "openvino": ".xml"}[peer.runtime]
