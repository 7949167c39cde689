"""Exports are slow beside everything else here: each net is exported once a session."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from export_nets import SPEC, Exported, build, pictures

from edgedistill.export.onnx import export
from edgedistill.recipe import Export


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """Export one of NETS, once a session."""
    made: dict[str, Exported] = {}

    def get(name: str) -> Exported:
        if name not in made:
            path = tmp_path_factory.mktemp(name) / "student.fp32.onnx"
            images, model = pictures(24), build(name)
            made[name] = Exported(model, path, export(model, SPEC, path, images, Export()), images)
        return made[name]

    return get
