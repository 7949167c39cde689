"""Every name of TensorRT that the backend uses, and every name of the double, exists in the real bindings.

The bindings are imported without NVIDIA's libraries: a stub library, built under each name that they load, provides
the few factory functions that they need. The names are read from the backend's own source.
"""

from __future__ import annotations

import ast
import enum
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgedistill.agent import graph_types, tensorrt, tensorrt_build
from edgedistill.agent.job import AgentError
from tests.helpers import tiny_onnx, trt_double
from tests.helpers.wheels import unpacked_wheel

MODULES = [Path(str(module.__file__)) for module in (tensorrt, tensorrt_build)]
WHEELS = {
    ("tensorrt", "8.6.1"): "tensorrt_bindings==8.6.1",
    ("tensorrt", "10.3.0"): "tensorrt_cu12_bindings==10.3.0",
    ("tensorrt", "10.13.3.9"): "tensorrt_cu13_bindings==10.13.3.9",
    ("tensorrt", "10.16.1.11"): "tensorrt_cu13_bindings==10.16.1.11",
    ("tensorrt", "11.4.0.106"): "tensorrt_cu13_bindings==11.4.0.106",
    ("tensorrt_rtx", "1.7.1.116"): "tensorrt_rtx_cu13_bindings==1.7.1.116",
}
# variable name in the backend -> class of its object
OBJECTS = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "tensor": "ITensor",
    "timing": "ITimingCache",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "inspector": "EngineInspector",
    "runtime_config": "IRuntimeConfig",
    "runtime_cache": "IRuntimeCache",
}
Surface = tuple[str, str, dict[str, str]]
GUARDS = ("timing_cache", "just_in_time")
FACTORIES = re.compile(
    r"create\w+_INTERNAL|get\w*PluginRegistry|getNvOnnxParserVersion|initLibNvInferPlugins|"
    r"_ZN\d+nv(uff|caffe)parser\w+"
)
LIST = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
names = {}
def add(path, member):
    names[path] = (getattr(member, "__doc__", None) or "").strip().split("\\n")[0] if callable(member) else ""
    if isinstance(member, type) and path.count(".") < 2:
        for name in dir(member):
            if not name.startswith("_"):
                add(path + "." + name, getattr(member, name))
for name in dir(module):
    add(name, getattr(module, name))
print(json.dumps({"version": module.__version__, "names": names}))
"""


def used_names(source: str) -> dict[str, set[str]]:
    """Return the names that a source uses, as Class.attribute, by the guard ("" for none) that they are used under."""
    names_by_guard: dict[str, set[str]] = {guard: set() for guard in ("", *GUARDS)}
    for top in ast.parse(source).body:
        inside = [top, *(top.body if isinstance(top, ast.ClassDef) else [])]
        for node in inside[1:] or inside:
            name = getattr(node, "name", "")
            guard = next((guard for guard in GUARDS if guard in name), "")
            names_by_guard[guard] |= set(attribute_names(node))
    return names_by_guard


def attribute_names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or node.attr.startswith("__"):
            continue
        holder = node.value
        last = holder.attr if isinstance(holder, ast.Attribute) else getattr(holder, "id", "")
        if last in OBJECTS:
            yield f"{OBJECTS[last]}.{node.attr}"
        dotted = ast.unparse(node)
        if re.match(r"(self\.)?trt\.[A-Z]", dotted):
            yield dotted.partition("trt.")[2]


def required_names(package: str, version: str, sources: list[str]) -> set[str]:
    """Return every name that the backend uses of one version, in the branch that it takes for it."""
    branch = tensorrt_build.branch_of(package, version)
    names: set[str] = set()
    for source in sources:
        names_by_guard = used_names(source)
        names |= names_by_guard[""].union(*(names_by_guard[guard] for guard in GUARDS if getattr(branch, guard)))
    names |= {f"NetworkDefinitionCreationFlag.{flag}" for flag in branch.network_flags}
    names |= {f"BuilderFlag.{flag}" for flag in (*branch.builder_flags, *branch.precision_flags.values())}
    return names | {f"ICudaEngine.{branch.memory_size}"}


def double_names(package: str, version: str) -> dict[str, Any]:
    """Return every public name of the double with its object."""
    module, names = trt_double.module(package, version), {}
    for name, kind in vars(module).items():
        if isinstance(kind, type):
            members = kind.__members__ if issubclass(kind, enum.Enum) else vars(kind)
            names.update(
                {f"{name}.{member}": member_object for member, member_object in members.items() if member[0] != "_"}
            )
            names[name] = kind
    return names


@pytest.fixture(scope="module", params=WHEELS, ids="-".join)
def surface(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Surface:
    """Return package, version, and every name of the real bindings with the first line of its documentation."""
    package, version = request.param
    if not all(shutil.which(program) for program in ("cc", "nm", "readelf")):
        pytest.skip("no C compiler or binutils here (cc, nm, readelf): the stub library cannot be built")
    folder = tmp_path_factory.mktemp("bindings")
    site = unpacked_wheel(WHEELS[package, version], folder)
    (bindings,) = site.glob(f"{package}*/{package}.so")
    stub(bindings, folder)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(site)}
    process = subprocess.run(
        [sys.executable, "-c", LIST, bindings.parent.name],
        env=environment,
        text=True,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    listing = json.loads(process.stdout)
    assert listing["version"] == version
    return package, version, listing["names"]


def stub(bindings: Path, folder: Path) -> None:
    """Build stubs of the libraries that the bindings load, with empty versions of the functions they import."""
    command = ["nm", "-D", "--undefined-only", str(bindings)]
    undefined = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    symbols = sorted({word for word in undefined.split() if FACTORIES.fullmatch(word)})
    assert len(symbols) >= 8
    source = folder / "stub.c"
    source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in symbols))
    dynamic = subprocess.run(["readelf", "-d", str(bindings)], capture_output=True, text=True, check=True).stdout
    for library in re.findall(r"NEEDED.*\[(lib(?:nv|tensorrt)[^]]*)\]", dynamic):
        subprocess.run(["cc", "-shared", "-fPIC", "-o", str(folder / library), str(source)], check=True, timeout=120)


@pytest.mark.slow
def test_names_used_by_backend_exist(surface: Surface) -> None:
    package, version, names = surface
    assert sorted(required_names(package, version, [path.read_text() for path in MODULES]) - set(names)) == []


@pytest.mark.slow
def test_names_and_parameters_of_double_exist(surface: Surface) -> None:
    package, version, names = surface
    double = double_names(package, version)
    assert sorted(set(double) - set(names)) == []
    compared = 0
    for name, kind in double.items():
        if inspect.isfunction(kind):
            double_parameters = list(inspect.signature(kind).parameters)[1:]
            # for overloads pybind11 writes `name(*args, **kwargs)`, which cannot be compared
            real_parameters = re.findall(r"(?:\(|, )(\w+): ", names[name].partition(" -> ")[0])[1:]
            assert "*args" in names[name] or double_parameters == real_parameters[: len(double_parameters)], (
                f"{name}: {names[name]}"
            )
            compared += "*args" not in names[name]
    assert compared > 20


@pytest.mark.slow
def test_invented_name_is_detected(surface: Surface) -> None:
    package, version, names = surface
    sources = [path.read_text() for path in MODULES]
    for correct, misspelled, missing_name in (
        ("builder.create_network(", "builder.create_netwerk(", "Builder.create_netwerk"),
        ("trt.TensorIOMode.INPUT", "trt.TensorIOMode.INPUTS", "TensorIOMode.INPUTS"),
        ("self.context.execute_async_v3(", "self.context.execute_async_v4(", "IExecutionContext.execute_async_v4"),
    ):
        assert any(correct in source for source in sources)
        mutated = [source.replace(correct, misspelled) for source in sources]
        assert required_names(package, version, mutated) - set(names) == {missing_name}


def test_names_are_collected_per_guard() -> None:
    names_by_guard = used_names(
        "def build(trt, config):\n    builder = trt.Builder(None)\n    builder.platform\n"
        "    self.engine.num_io_tensors\n"
        "class X:\n    def timing_cache_of(self):\n        return self.trt.A.B, config.get()\n"
        "    def b(self):\n        trt.C.D\n"
    )
    assert names_by_guard[""] == {"Builder", "Builder.platform", "ICudaEngine.num_io_tensors", "C.D", "C"}
    assert names_by_guard["timing_cache"] == {"A", "A.B", "IBuilderConfig.get"}
    assert names_by_guard["just_in_time"] == set()


@pytest.mark.parametrize(("package", "version"), WHEELS)
def test_double_has_names_used_by_backend(package: str, version: str) -> None:
    names = required_names(package, version, [path.read_text() for path in MODULES])
    assert len(names) > 50 and {name.partition(".")[0] for name in names} > set(OBJECTS.values()) - {
        "ITimingCache",
        "IRuntimeConfig",
        "IRuntimeCache",
    }
    assert (
        sorted(
            names
            - set(double_names(package, version))
            - {"ILogger.Severity.ERROR", "ILogger.Severity.WARNING", "ILogger.Severity.INTERNAL_ERROR"}
        )
        == []
    )


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_real_rtx_builds_network_of_backend(precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed (extra rtx)", exc_type=ImportError)

    def configure_for_ada(trt: Any, config: Any) -> None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM89, 0)

    # a machine without a GPU cannot detect the compute capability
    monkeypatch.setattr(tensorrt_build, "_just_in_time_for_this_gpu", configure_for_ada)
    path = tiny_onnx.write(tmp_path / "m.onnx", precision)
    branch = tensorrt_build.branch_of("tensorrt_rtx", trt.__version__)
    settings = tensorrt_build.settings(branch, graph_types.read(path.read_bytes()))
    plan, timings = tensorrt_build.build_plan(trt, branch, settings, path.read_bytes(), batch=2)
    assert isinstance(plan, bytes) and len(plan) > 10_000 and timings == b""
    odd = tiny_onnx.write(tmp_path / "odd.onnx", operator="Oddity")
    with pytest.raises(AgentError, match=r"TensorRT-RTX \S+ cannot parse it: In node \d+ .*the_odd_one") as caught:
        tensorrt_build.build_plan(trt, branch, settings, odd.read_bytes(), batch=2)
    assert "\n" not in str(caught.value)
