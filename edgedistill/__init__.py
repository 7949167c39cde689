"""edgedistill: distills pretrained models into a small int8 student from few labels and many unlabeled images.

    import edgedistill as ed

    run = ed.run("photos/", latency_ms=5)
    print(run.accuracy, run.student.predict("new.jpg"))

The import loads nothing else: each name is loaded when it is first used (PEP 562).
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgedistill.api import (
        Callback,
        EdgeDistillError,
        InputError,
        Prediction,
        Quantized,
        Run,
        Student,
        bench,
        export,
        load,
        quantize,
        run,
        similarity,
        suggest,
        train,
    )

__version__ = "0.1.0"
__all__ = [
    "Callback",
    "EdgeDistillError",
    "InputError",
    "Prediction",
    "Quantized",
    "Run",
    "Student",
    "__version__",
    "bench",
    "export",
    "load",
    "quantize",
    "run",
    "similarity",
    "suggest",
    "train",
]
PACKAGES = ("export", "run", "similarity")  # folders of the package that are functions of the API as well


class CallablePackage(ModuleType):
    """A package that is also a function of the API: `ed.run("photos")` beside `edgedistill.run.directory`."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Call the function of edgedistill.api of the package's name."""
        function = getattr(importlib.import_module("edgedistill.api"), self.__name__.rpartition(".")[2])
        return function(*args, **options)


def __getattr__(name: str) -> Any:
    if name in PACKAGES:
        return importlib.import_module(f"edgedistill.{name}")
    if name in __all__:
        return getattr(importlib.import_module("edgedistill.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
