"""ncnn's files of a student, converted from the fp32 graph by pnnx (ncnn's own converter) and compared with that graph.

pnnx is native code that may crash, so it runs as a program. int8 is left out: ncnn's int8 weights are written by its
programs `ncnn2table` and `ncnn2int8`, which neither of the packages `ncnn` and `pnnx` contains.

N images, C target classes.
"""

from __future__ import annotations

import subprocess
import zipfile
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgedistill.agent import backends
from edgedistill.agent import ncnn as agent_ncnn
from edgedistill.agent.job import AgentError
from edgedistill.agent.metrics import agreement
from edgedistill.errors import EdgeDistillError, GateError, InputError
from edgedistill.export import graphs
from edgedistill.export.infer import predict_onnx, relative_error
from edgedistill.recipe.schema import Export
from edgedistill.records import OnnxModel
from edgedistill.run import interrupts
from edgedistill.run.files import atomic

if TYPE_CHECKING:
    from onnx import ModelProto

INSTALL = 'pip install "edgedistill[ncnn]"'
TIMEOUT_S = 600.0
LEAVE_OUT = "leave export.ncnn out"
FILE = "student.ncnn.zip"


def version() -> str:
    """The installed converter, such as `pnnx 20261020`, without importing it; "" if there is none."""
    try:
        return f"pnnx {metadata.version('pnnx')}"
    except metadata.PackageNotFoundError:
        return ""


def convert(graph: Path, fp32: OnnxModel, images_NHWC: np.ndarray, folder: Path, settings: Export) -> OnnxModel:
    """Write FILE into `folder` and return its record; `parity` has what each storage type changes on the images.

    Args:
        graph: the fp32 graph.
        fp32: its record.
        images_NHWC: uint8 [N, px, px, 3].
        folder: output folder.
        settings: in float32, agreement and relative error must meet the bounds of the fp32 graph's gates.

    Raises:
        InputError: pnnx or ncnn is not installed.
        EdgeDistillError: pnnx cannot convert the graph, or ncnn cannot load what it wrote.
        GateError: ncnn in float32 computes something else.
    """
    if not version():
        raise InputError("export.ncnn: pnnx is not installed", f"{INSTALL}, or leave the key out")
    path = folder / FILE
    param, weights = _run_pnnx(graph, images_NHWC.shape[1])
    with atomic(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, content in ((agent_ncnn.PARAM, param), (agent_ncnn.WEIGHTS, weights)):
            archive.writestr(zipfile.ZipInfo(name), content)  # a ZipInfo of a name alone has the date 1980-01-01
    expected_NC = predict_onnx(graph, images_NHWC)
    parity = {}
    for backend in ("ncnn", "ncnn-half", "ncnn-bf16"):
        logits_NC = _logits(backend, path, images_NHWC)
        if logits_NC.shape != expected_NC.shape:
            shapes = f"{list(logits_NC.shape)} instead of {list(expected_NC.shape)}"
            raise GateError(f"engines: ncnn gives logits of shape {shapes}: pnnx misread the graph", LEAVE_OUT)
        parity[f"{backend} agreement"] = agreement(expected_NC.argmax(1), logits_NC.argmax(1))
        parity[f"{backend} relative error"] = relative_error(expected_NC, logits_NC)
    same, error = parity["ncnn agreement"], parity["ncnn relative error"]
    if same < settings.min_agreement or error > settings.max_relative_error:
        message = f"engines: ncnn gives {same:.1%} of the fp32 graph's labels, with a relative error of {error:.2g}"
        raise GateError(message, "leave export.ncnn out, or loosen export.min_agreement and export.max_relative_error")
    return graphs.record(path, "fp32", "ncnn", opset=fp32.opset, parent_sha256=fp32.sha256, parity=parity)


def _run_pnnx(graph: Path, px: int) -> tuple[bytes, bytes]:
    """The .param and .bin that pnnx makes of a graph whose input is read as float32: ncnn has no uint8 tensors."""
    import onnx

    package = util.find_spec("pnnx")
    assert package is not None and package.origin is not None, "it is installed"
    with interrupts.temporary_folder() as folder:
        source = folder / "student.onnx"
        onnx.save(_float_input(onnx.load(graph)), source)
        command = [str(Path(package.origin).parent / "pnnx"), source.name, f"inputshape=[1,{px},{px},3]f32", "fp16=0"]
        with interrupts.child_session(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process:
            try:
                log, _ = process.communicate(timeout=TIMEOUT_S)
            except subprocess.TimeoutExpired:
                raise EdgeDistillError(f"engines: pnnx took more than {TIMEOUT_S:.0f} s", LEAVE_OUT) from None
        files = [folder / name for name in (agent_ncnn.PARAM, agent_ncnn.WEIGHTS)]
        if process.returncode or not all(file.is_file() for file in files):
            last = (log.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
            raise EdgeDistillError(f"engines: pnnx cannot convert the graph ({last})", LEAVE_OUT)
        param, weights = (file.read_bytes() for file in files)
        return param, weights


def _float_input(model: ModelProto) -> ModelProto:
    """The graph without its first Cast: float32 images in, the same numbers from 0 to 255."""
    from onnx import TensorProto

    graph = model.graph
    images = graph.input[0].name
    cast = next((node for node in graph.node if node.op_type == "Cast" and list(node.input) == [images]), None)
    if cast is None:
        raise EdgeDistillError("engines: the graph has no Cast of its images", LEAVE_OUT)
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == cast.output[0]:
                node.input[index] = images
    graph.node.remove(cast)
    graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    return model


def _logits(backend: str, path: Path, images_NHWC: np.ndarray) -> np.ndarray:
    try:
        engine = backends.create(backend)
        engine.build(path, threads=1)
        return engine.infer(images_NHWC)
    except AgentError as error:
        raise EdgeDistillError(f"engines: {error}", INSTALL) from None
