"""The agent uses only the standard library, numpy and the runtime, in the syntax of Python 3.8."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgedistill import agent

FOLDER = Path(agent.__file__).parent
MODULES = sorted(FOLDER.glob("*.py"))
ALLOWED = {"numpy", "onnxruntime", "openvino", "ncnn"}
# the example program opens images and cameras; to_label.py times what it does, where Pillow is there
EXTRA = {
    "label.py": {"PIL", "cv2", "pictures", "unsure"},
    "pictures.py": {"PIL"},
    "to_label.py": {"PIL"},
    "unsure.py": {"PIL"},
}


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module).partition(".")[0]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1, "a relative import that leaves the package would not exist in the archive"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_imports_nothing_that_a_device_lacks(path: Path) -> None:
    foreign = set(imported(ast.parse(path.read_text()))) - set(sys.stdlib_module_names) - ALLOWED
    assert foreign == EXTRA.get(path.name, set())


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_parses_as_python_3_8(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    with_future = any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body)
    assert with_future or path.name == "__init__.py"


def test_checks_can_fail() -> None:
    with pytest.raises(SyntaxError):
        ast.parse("match x:\n    case 1: pass", feature_version=(3, 8))
    assert set(imported(ast.parse("import torch.nn\nfrom pydantic import BaseModel"))) == {"torch", "pydantic"}
