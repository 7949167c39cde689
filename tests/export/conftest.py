"""Exports are slow beside everything else here: each net is exported once a session."""

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
    """Export one of NETS, once a session."""
    made: dict[str, Exported] = {}

    def get(name: str) -> Exported:
        if name not in made:
            path = tmp_path_factory.mktemp(name) / "student.fp32.onnx"
            images, model = pictures(24), build(name)
            made[name] = Exported(
                model=model,
                path=path,
                record=export(model, SPEC, path=path, images_NHWC=images, settings=Export()),
                images_NHWC=images,
            )
        return made[name]

    return get


@pytest.fixture(scope="session")
def ranged(exported: Callable[[str], Exported]) -> Callable[[str], Ranged]:
    """The float graph of one of NETS and the extremes of all its tensors, hard-swish taken apart among them."""
    found: dict[str, Ranged] = {}

    def get(name: str) -> Ranged:
        if name not in found:
            model = onnx.load(exported(name).path)
            whole = qdq.prepared(model, "cpu")
            names = [tensor for node in whole.graph.node for tensor in node.output]
            seen = calibrate.collect(whole, exported(name).images_NHWC, names)
            found[name] = model, calibrate.ranges(seen, "minmax")
        return found[name]

    return get
