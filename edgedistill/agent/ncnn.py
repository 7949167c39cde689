"""ncnn on the processor, ARM and x86; its graph is a .zip of ncnn's own two files, made on the host (export/ncnn.py).

    ncnn         float32
    ncnn-half    weights and activations in fp16, products too where the processor has them (ARMv8.2 asimdhp)
    ncnn-bf16    weights and activations in bf16

Options as ncnn's net.h and option.h describe them.
"""

from __future__ import annotations

import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Dict

import numpy as np

from .job import AgentError

WINDOW = "extract of an ncnn extractor, one image at a time: host arrays in, host arrays out; no decoding, no resizing"
PARAM, WEIGHTS = "student.ncnn.param", "student.ncnn.bin"
INPUT, OUTPUT = "in0", "out0"  # as pnnx names them
FP16 = ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic")
BF16 = ("use_bf16_packed", "use_bf16_storage")
STORAGE = {"fp32": (), "fp16": FP16, "bf16": BF16}


class Ncnn:
    """One net; ncnn has no batches, so a batch is one image after the other."""

    def __init__(self, storage: str) -> None:
        self.storage = storage
        self.modes = {"host-to-host": WINDOW}
        self.net: Any = None

    def build(self, model_path: Path, threads: int, batch: int = 1) -> None:
        """A net of the two files in `model_path`; `batch` needs no preparation.

        Raises:
            AgentError: exit code 2; the runtime is missing, or the file is no such graph.
        """
        runtime = self.runtime = _runtime()
        net = runtime.Net()
        net.opt.num_threads, net.opt.use_vulkan_compute = threads, False
        for name in FP16 + BF16:
            if hasattr(net.opt, name):  # older versions have fewer
                setattr(net.opt, name, name in STORAGE[self.storage])
        try:
            with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(str(model_path)) as archive:
                paths = [archive.extract(name, folder) for name in (PARAM, WEIGHTS)]
                failed = net.load_param(paths[0]) or net.load_model(paths[1])
        except (zipfile.BadZipFile, KeyError, OSError) as error:
            fix = "set export.ncnn in the recipe and run `edgedistill export` again"
            raise AgentError(f"{model_path.name}: is not a graph for ncnn ({error}); {fix}") from None
        if failed:
            raise AgentError(
                f"{model_path.name}: ncnn {runtime.__version__} cannot load it; update ncnn on this device"
            )
        self.net, self.threads = net, threads

    def infer(self, images_BHWC: np.ndarray, mode: str = "host-to-host") -> np.ndarray:
        """uint8 [B, H, W, 3] -> float32 logits [B, C]."""
        return np.stack([self._logits(image_HWC) for image_HWC in images_BHWC])

    def _logits(self, image_HWC: np.ndarray) -> np.ndarray:
        extractor = self.net.create_extractor()
        # the Mat has no memory of its own, so the array must outlive it
        pixels_HWC = np.ascontiguousarray(image_HWC, dtype=np.float32)
        extractor.input(INPUT, self.runtime.Mat(pixels_HWC))
        code, logits_C = extractor.extract(OUTPUT)
        if code:
            raise AgentError(f"ncnn stopped with code {code}; is there enough memory?", exit_code=1)
        return np.array(logits_C)

    def compute_ms(self, images_BHWC: np.ndarray, mode: str) -> float:
        """A processor has no time of its own beside the host's.

        Raises:
            AgentError: always; `modes` has no such mode.
        """
        raise AgentError(f"ncnn has no mode {mode}; one of: {', '.join(self.modes)}")

    def facts(self) -> Dict[str, Any]:
        """The version, the type of weights and activations and, once built, threads and number of layers.

        Raises:
            AgentError: exit code 2; the runtime is missing.
        """
        facts: Dict[str, Any] = {"version": str(_runtime().__version__), "storage": self.storage}
        if self.net is None:
            return facts
        return {**facts, "threads": self.threads, "layers": len(self.net.layers())}

    def close(self) -> None:
        """Let go of the net."""
        self.net = None


def _runtime() -> Any:
    try:
        import ncnn
    except ImportError as error:
        fix = f"{sys.executable} -m pip install ncnn"
        raise AgentError(f"ncnn does not import in {sys.executable} ({error}); {fix}") from None
    return ncnn
