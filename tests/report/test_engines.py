"""The report's block on engines built ahead of time, on fixed records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgedistill.measurements import Engine, EngineLayers
from edgedistill.report import render
from edgedistill.report.blocks import WIDTH, format_block
from edgedistill.report.engines import blocks
from edgedistill.report.facts import read, warnings
from edgedistill.run.directory import Run
from edgedistill.run.files import write_record
from tests.helpers.report_runs import make_run

FLOAT = EngineLayers(
    total=4,
    types={"int8": 0, "fp16": 0, "fp32": 4, "unknown": 0},
    weighted={"c": "fp32", "d": "fp32"},
    pairs=0,
    unfused=(),
    unknown=(),
)
INT8 = EngineLayers(
    total=8,
    types={"int8": 3, "fp16": 1, "fp32": 4, "unknown": 0},
    weighted={"c": "int8", "d": "fp16"},
    pairs=4,
    unfused=("c_q",),
    unknown=(),
)
FP32 = Engine(
    artefact="fp32",
    onnx_sha256="f" * 64,
    capability="sm86",
    builder="tensorrt-rtx 1.7.1",
    batch=1,
    seconds=1.25,
    path="fp32.sm86.engine",
    sha256="a" * 64,
    size_mb=3.5,
    layers=FLOAT,
)
QUANTIZED = Engine(
    artefact="int8-tensorrt",
    onnx_sha256="2" * 64,
    capability="sm86",
    builder="tensorrt-rtx 1.7.1",
    batch=1,
    seconds=2.5,
    path="x.engine",
    sha256="b" * 64,
    size_mb=1.25,
    layers=INT8,
)
FAILED = Engine(
    artefact="fp16",
    onnx_sha256="3" * 64,
    capability="sm86",
    builder="tensorrt-rtx 1.7.1",
    batch=1,
    seconds=0.5,
    failed="node odd: no such operator",
)

EXPECTED = """\
ENGINES
  tensorrt-rtx 1.7.1, without a GPU; batches of 1 alone
  graph           GPU     MB  layers  int8  fp16   fp32  weighted in int8  Q/DQ unfused  build s
  fp32           sm86   3.50       4   0 %   0 %  100 %            0 of 2             -     1.25
  fp16           sm86   none       -     -     -      -                 -             -    0.500
  int8-tensorrt  sm86   1.25       8  38 %  12 %   50 %            1 of 2        1 of 4     2.50
  int8-tensorrt  sm89  0.960       8  38 %  12 %   50 %            1 of 2        2 of 4     2.50
  a check that a graph parses, types and builds; no evidence of what TensorRT fuses on a device, nor
    of its speed: a device builds its engine from the same ONNX file, and edgedistill bench measures
    it
  layers by the type that they multiply in, else by their widest type; weighted: convolutions and
    matrix products; unfused: of the Q and DQ of activations, those with a kernel to themselves (the
    others share one with other operators)
  fp16: does not build: node odd: no such operator (sm86)
  int8-tensorrt: weighted, not in int8: d
  int8-tensorrt: unfused: c_q (sm86)
  int8-tensorrt: unfused: c_q, d_q (sm89)"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path, "quantize")


def write_engines(run: Run, *engines: Engine) -> None:
    for engine in engines:
        write_record(run / f"engines/{engine.artefact}.{engine.capability}.json", engine)


def test_block_lists_every_engine(run: Run) -> None:
    unfused = replace(INT8, unfused=("c_q", "d_q"))
    write_engines(run, replace(QUANTIZED, capability="sm89", size_mb=0.96, layers=unfused), QUANTIZED, FAILED, FP32)
    (block,) = blocks(read(run))
    assert format_block(block) == EXPECTED
    assert max(map(len, format_block(block).splitlines())) <= WIDTH
    assert all(text in render.html(run) for text in ("int8-tensorrt", "2 of 4", "no evidence of what TensorRT fuses"))
    assert len(render.collect(run)["engines"]) == 4


def test_failed_build_is_a_warning(run: Run) -> None:
    assert not [line for line in warnings(read(run)) if line.startswith("engines")]
    write_engines(run, FP32, FAILED)
    assert "engines: fp16 for sm86 does not build: node odd: no such operator" in warnings(read(run))


def test_layers_missing_from_build_log_are_unknown(run: Run) -> None:
    unlogged = replace(INT8, unfused=(), unknown=tuple(f"q{index}" for index in range(6)))
    write_engines(run, replace(FP32, layers=None), replace(QUANTIZED, layers=unlogged))
    (block,) = blocks(read(run))
    assert block.rows[0][3:9] == ("unknown",) * 6
    assert "fp32: the builder's log lists no layers" in block.lines
    assert "int8-tensorrt: Q/DQ not in the log: q0, q1, q2, q3 and 2 more" in block.lines


def test_block_says_why_there_are_no_engines(run: Run) -> None:
    (block,) = blocks(read(run))
    assert (block.rows, block.lines) == ((), ("no builder is installed",))
    (run / "engines/none.json").unlink()
    assert blocks(read(run))[0].lines == ("not run yet: edgedistill export",)
