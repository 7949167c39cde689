"""Every name of TensorRT that the backend uses, and every name of the double, exists in the real bindings.

The bindings are imported without NVIDIA's libraries: a stub library, made here under each name they ask for, provides
the few factory functions that they need to load. The names come out of the backend's own source.
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
from tests.helpers.wheels import unpacked

MODULES = [Path(str(module.__file__)) for module in (tensorrt, tensorrt_build)]
WHEELS = {
    ("tensorrt", "8.6.1"): "tensorrt_bindings==8.6.1",
    ("tensorrt", "10.3.0"): "tensorrt_cu12_bindings==10.3.0",
    ("tensorrt", "10.13.3.9"): "tensorrt_cu13_bindings==10.13.3.9",
    ("tensorrt", "10.16.1.11"): "tensorrt_cu13_bindings==10.16.1.11",
    ("tensorrt", "11.4.0.106"): "tensorrt_cu13_bindings==11.4.0.106",
    ("tensorrt_rtx", "1.7.1.116"): "tensorrt_rtx_cu13_bindings==1.7.1.116",
}
# what the backend calls its objects -> their class
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
found = {}
def add(path, thing):
    found[path] = (getattr(thing, "__doc__", None) or "").strip().split("\\n")[0] if callable(thing) else ""
    if isinstance(thing, type) and path.count(".") < 2:
        for name in dir(thing):
            if not name.startswith("_"):
                add(path + "." + name, getattr(thing, name))
for name in dir(module):
    add(name, getattr(module, name))
print(json.dumps({"version": module.__version__, "names": found}))
"""


def used(source: str) -> dict[str, set[str]]:
    """Guard ("" for none) -> names used under it, as Class.attribute."""
    found: dict[str, set[str]] = {guard: set() for guard in ("", *GUARDS)}
    for top in ast.parse(source).body:
        inside = [top, *(top.body if isinstance(top, ast.ClassDef) else [])]
        for part in inside[1:] or inside:
            name = getattr(part, "name", "")
            guard = next((one for one in GUARDS if one in name), "")
            found[guard] |= set(named(part))
    return found


def named(tree: ast.AST) -> Iterator[str]:
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


def wanted(package: str, version: str, sources: list[str]) -> set[str]:
    """All that the backend uses of one version, by the branch that it takes there."""
    branch = tensorrt_build.branch_of(package, version)
    names: set[str] = set()
    for source in sources:
        found = used(source)
        names |= found[""].union(*(found[guard] for guard in GUARDS if getattr(branch, guard)))
    names |= {f"NetworkDefinitionCreationFlag.{flag}" for flag in branch.network_flags}
    names |= {f"BuilderFlag.{flag}" for flag in (*branch.builder_flags, *branch.precision_flags.values())}
    return names | {f"ICudaEngine.{branch.memory_size}"}


def double_names(package: str, version: str) -> dict[str, Any]:
    """Every name that the double has for its user, with what it is."""
    module, found = trt_double.module(package, version), {}
    for name, kind in vars(module).items():
        if isinstance(kind, type):
            members = kind.__members__ if issubclass(kind, enum.Enum) else vars(kind)
            found.update({f"{name}.{one}": value for one, value in members.items() if one[0] != "_"})
            found[name] = kind
    return found


@pytest.fixture(scope="module", params=WHEELS, ids="-".join)
def surface(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Surface:
    """Package, version, and every name of the real bindings with the first line of its documentation."""
    package, version = request.param
    if not all(shutil.which(program) for program in ("cc", "nm", "readelf")):
        pytest.skip("no C compiler or binutils here (cc, nm, readelf): the stub library cannot be built")
    folder = tmp_path_factory.mktemp("bindings")
    site = unpacked(WHEELS[package, version], folder)
    (bindings,) = site.glob(f"{package}*/{package}.so")
    stub(bindings, folder)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", LIST, bindings.parent.name],
        env=environment,
        text=True,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["version"] == version
    return package, version, found["names"]


def stub(bindings: Path, folder: Path) -> None:
    """The libraries that the bindings ask for, with the functions that they take from them, which do nothing."""
    asked = ["nm", "-D", "--undefined-only", str(bindings)]
    undefined = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    symbols = sorted({word for word in undefined.split() if FACTORIES.fullmatch(word)})
    assert len(symbols) >= 8
    source = folder / "stub.c"
    source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in symbols))
    dynamic = subprocess.run(["readelf", "-d", str(bindings)], capture_output=True, text=True, check=True).stdout
    for library in re.findall(r"NEEDED.*\[(lib(?:nv|tensorrt)[^]]*)\]", dynamic):
        subprocess.run(["cc", "-shared", "-fPIC", "-o", str(folder / library), str(source)], check=True, timeout=120)


@pytest.mark.slow
def test_what_the_backend_uses_exists(surface: Surface) -> None:
    package, version, names = surface
    assert sorted(wanted(package, version, [path.read_text() for path in MODULES]) - set(names)) == []


@pytest.mark.slow
def test_what_the_double_has_exists_and_is_called_alike(surface: Surface) -> None:
    package, version, names = surface
    double = double_names(package, version)
    assert sorted(set(double) - set(names)) == []
    compared = 0
    for name, kind in double.items():
        if inspect.isfunction(kind):
            mine = list(inspect.signature(kind).parameters)[1:]
            # of several signatures pybind11 writes `name(*args, **kwargs)`, which says nothing
            real = re.findall(r"(?:\(|, )(\w+): ", names[name].partition(" -> ")[0])[1:]
            assert "*args" in names[name] or mine == real[: len(mine)], f"{name}: {names[name]}"
            compared += "*args" not in names[name]
    assert compared > 20


@pytest.mark.slow
def test_a_name_that_was_made_up_is_found_out(surface: Surface) -> None:
    package, version, names = surface
    sources = [path.read_text() for path in MODULES]
    for true, false, found in (
        ("builder.create_network(", "builder.create_netwerk(", "Builder.create_netwerk"),
        ("trt.TensorIOMode.INPUT", "trt.TensorIOMode.INPUTS", "TensorIOMode.INPUTS"),
        ("self.context.execute_async_v3(", "self.context.execute_async_v4(", "IExecutionContext.execute_async_v4"),
    ):
        assert any(true in source for source in sources)
        mutated = [source.replace(true, false) for source in sources]
        assert wanted(package, version, mutated) - set(names) == {found}


def test_names_are_collected_and_guards_kept_apart() -> None:
    found = used(
        "def build(trt, config):\n    builder = trt.Builder(None)\n    builder.platform\n"
        "    self.engine.num_io_tensors\n"
        "class X:\n    def timing_cache_of(self):\n        return self.trt.A.B, config.get()\n"
        "    def b(self):\n        trt.C.D\n"
    )
    assert found[""] == {"Builder", "Builder.platform", "ICudaEngine.num_io_tensors", "C.D", "C"}
    assert found["timing_cache"] == {"A", "A.B", "IBuilderConfig.get"}
    assert found["just_in_time"] == set()


@pytest.mark.parametrize(("package", "version"), WHEELS)
def test_the_double_has_what_the_backend_uses(package: str, version: str) -> None:
    names = wanted(package, version, [path.read_text() for path in MODULES])
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
def test_the_real_rtx_builds_what_the_backend_gives_it(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed (extra rtx)", exc_type=ImportError)

    def for_an_ada(trt: Any, config: Any) -> None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM89, 0)

    # the one thing that a machine without a GPU cannot say is which one it is
    monkeypatch.setattr(tensorrt_build, "_just_in_time_for_this_gpu", for_an_ada)
    path = tiny_onnx.write(tmp_path / "m.onnx", precision)
    branch = tensorrt_build.branch_of("tensorrt_rtx", trt.__version__)
    how = tensorrt_build.settings(branch, graph_types.read(path.read_bytes()))
    plan, timings = tensorrt_build.build_plan(trt, branch, how, path.read_bytes(), batch=2)
    assert isinstance(plan, bytes) and len(plan) > 10_000 and timings == b""
    odd = tiny_onnx.write(tmp_path / "odd.onnx", operator="Oddity")
    with pytest.raises(AgentError, match=r"TensorRT-RTX \S+ cannot parse it: In node \d+ .*the_odd_one") as caught:
        tensorrt_build.build_plan(trt, branch, how, odd.read_bytes(), batch=2)
    assert "\n" not in str(caught.value)
