"""Export each net once per session: the exports take most of the time of these tests."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest

from edgedistill.export import calibrate, qdq
from edgedistill.export.onnx import export
from edgedistill.recipe.schema import Export
from tests.helpers.export_nets import SPEC, Exported, Ranged, build, pictures


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """Export one of NETS, once per session."""
    students: dict[str, Exported] = {}

    def get(name: str) -> Exported:
        if name not in students:
            path = tmp_path_factory.mktemp(name) / "student.fp32.onnx"
            images, model = pictures(24), build(name)
            students[name] = Exported(
                model=model,
                path=path,
                record=export(model, SPEC, path=path, images_NHWC=images, settings=Export()),
                images_NHWC=images,
            )
        return students[name]

    return get


@pytest.fixture(scope="session")
def ranged(exported: Callable[[str], Exported]) -> Callable[[str], Ranged]:
    """Float graph of one of NETS and the extremes of all its tensors, those of split hard-swish nodes included."""
    graphs: dict[str, Ranged] = {}

    def get(name: str) -> Ranged:
        if name not in graphs:
            model = onnx.load(exported(name).path)
            prepared = qdq.prepare(model, "cpu")
            names = [tensor for node in prepared.graph.node for tensor in node.output]
            samples = calibrate.collect(prepared, exported(name).images_NHWC, names)
            graphs[name] = model, calibrate.ranges(samples, "minmax")
        return graphs[name]

    return get
