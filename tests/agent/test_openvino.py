"""OpenVINO: the float type that is asked for, threads, cache, what it fused, and a runtime that is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from edgedistill.agent import backends
from edgedistill.agent.job import AgentError
from tests.helpers import tiny_onnx

IMAGES = tiny_onnx.images(4, seed=0)


@pytest.fixture(autouse=True)
def cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("EDGEDISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "openvino"


@pytest.fixture(scope="module")
def runtime() -> Any:
    return pytest.importorskip("openvino", reason="needs the extra `openvino`")


def built(path: Path, name: str = "openvino", batch: int = 1) -> Any:
    backend = backends.create(name)
    try:
        backend.build(path, 1, batch)
    except AgentError as error:
        if "computes in float32 on this processor" in str(error):
            pytest.skip(str(error))
        raise
    return backend


@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize("precision", ["fp32", "uint8"])
def test_answers_equal_those_of_onnx_runtime(precision: str, tmp_path: Path) -> None:
    path = tiny_onnx.write(tmp_path / "m.onnx", precision)
    expected_BC = onnxruntime.InferenceSession(str(path)).run(None, {"images": IMAGES})[0]
    whole, single = built(path, batch=4), built(path)
    np.testing.assert_allclose(whole.infer(IMAGES), expected_BC, rtol=1e-4, atol=1e-3)
    answers = [single.infer(IMAGES[row : row + 1]) for row in range(4)]  # kept: an answer must not change with the next
    np.testing.assert_allclose(np.concatenate(answers), expected_BC, rtol=1e-4, atol=1e-3)


@pytest.mark.usefixtures("runtime")
def test_facts_have_float_type_threads_and_fused_layers(tmp_path: Path) -> None:
    facts = built(tiny_onnx.write(tmp_path / "m.onnx")).facts()
    assert facts["float"] == "f32" and facts["threads"] == 1 and facts["version"][0].isdigit()
    assert set(facts["precisions"]) <= {"f32", "u8", "i32"} and facts["fused"] >= 0
    assert any(name.startswith("FullyConnected") for name in facts["layers"])


@pytest.mark.usefixtures("runtime")
def test_reduced_takes_a_16_bit_float(tmp_path: Path) -> None:
    facts = built(tiny_onnx.write(tmp_path / "m.onnx"), "openvino-reduced").facts()
    assert facts["float"] in {"bf16", "f16"} and facts["float"] in facts["precisions"]


def test_second_build_comes_from_the_cache(runtime: Any, tmp_path: Path, cache_folder: Path) -> None:
    path = tiny_onnx.write(tmp_path / "m.onnx")
    first = built(path)
    assert not first.facts()["from_cache"] and list(cache_folder.glob("*.blob"))
    second = built(path)
    assert second.facts()["from_cache"] and second.facts()["layers"] == first.facts()["layers"]
    np.testing.assert_array_equal(second.infer(IMAGES[:1]), first.infer(IMAGES[:1]))
    # another student under the same name, and another batch
    assert not built(tiny_onnx.write(path, scale=2.0)).facts()["from_cache"]
    assert not built(path, batch=2).facts()["from_cache"]


@pytest.mark.usefixtures("runtime")
def test_graph_that_it_cannot_load_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match=r"m\.onnx: openvino .* cannot load it"):
        built(tiny_onnx.write(tmp_path / "m.onnx", operator="Unheard"))
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(AgentError, match=r"empty\.onnx: openvino .* cannot load it"):
        built(tmp_path / "empty.onnx")


@pytest.mark.usefixtures("runtime")
def test_loading_it_does_not_load_what_reports_to_its_makers() -> None:
    program = (
        "import sys; from edgedistill.agent import backends; backends.create('openvino').facts();"
        "print([name for name in sys.modules if name.startswith('openvino_telemetry') and sys.modules[name]])"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"


def test_missing_runtime_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(AgentError, match=r"openvino does not import .* -m pip install openvino$"):
        backends.create("openvino").facts()
    assert backends.available()["openvino-reduced"].startswith("not here: openvino does not import")
