"""One model in a process of its own that answers JSON lines: a command a line on stdin, an answer a line on stdout.

    {"load": path, "runtime": "onnxruntime"|"openvino", "threads": 1, "images": npy}  -> {"loaded": path, ...}
    {"warm": seconds}                                                                -> {"queries": n}
    {"time": n}                                                                      -> {"samples_ms": [...]}
    {"predict": npy, "out": npy, "simulate": bool, "first": n}                       -> {"images": n}
    {"quit": true}

A command that fails answers {"failed": reason} and the process lives on. Between commands it is blocked on stdin.
Runs in the environment of its runtime, so it imports nothing of this project. N images, C classes.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, Protocol, TextIO

import numpy as np

DISTINCT = 64  # images that the timed queries go through: 9 MB at 224 px, more than most second-level caches hold


class Session(Protocol):
    """A model in its runtime; `batch` images at most go into one query."""

    batch: int

    def __call__(self, images_BHWC: np.ndarray) -> np.ndarray:
        """From uint8 images to logits [B, C], both arrays of the host."""
        ...

    def facts(self) -> dict[str, str]:
        """What the runtime says of itself."""
        ...


class Onnxruntime:
    """ONNX Runtime on the CPU; with `simulate` no graph optimization, so Q and DQ are computed as written."""

    batch = 16

    def __init__(self, path: str, threads: int, px: int, simulate: bool) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        if simulate:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.version = onnxruntime.__version__
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def __call__(self, images_BHWC: np.ndarray) -> np.ndarray:
        logits_BC: np.ndarray = self.session.run(["logits"], {"images": images_BHWC})[0]
        return logits_BC

    def facts(self) -> dict[str, str]:
        return {"onnxruntime": self.version}


class Openvino:
    """OpenVINO on the CPU, with the batch fixed at one: its plugin is slower where shapes are dynamic."""

    batch = 1

    def __init__(self, path: str, threads: int, px: int, simulate: bool) -> None:
        import openvino  # type: ignore[import-not-found, unused-ignore]

        if simulate:
            raise ValueError("only onnxruntime simulates")
        core = openvino.Core()
        model = core.read_model(path)
        model.reshape([1, px, px, 3])
        settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
        self.compiled = core.compile_model(model, "CPU", settings)
        self.request = self.compiled.create_infer_request()
        self.version = openvino.__version__

    def __call__(self, images_BHWC: np.ndarray) -> np.ndarray:
        logits_BC: np.ndarray = self.request.infer([images_BHWC], share_inputs=True)[0]
        return logits_BC

    def facts(self) -> dict[str, str]:
        precision = self.compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        return {"openvino": self.version, "inference_precision": precision}


RUNTIMES: dict[str, type[Onnxruntime] | type[Openvino]] = {"onnxruntime": Onnxruntime, "openvino": Openvino}


class Worker:
    """The commands. Sessions are opened when they are first needed, one a way of running the graph."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}
        self.sessions: dict[bool, Session] = {}
        self.queue: Iterator[np.ndarray] = iter(())

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        """The reply to one command."""
        for name in ("load", "warm", "time", "predict"):
            if name in message:
                reply: dict[str, Any] = getattr(self, name)(message)
                return reply
        raise ValueError(f"unknown command: {', '.join(message)}")

    def session(self, simulate: bool) -> Session:
        """The model, opened once."""
        if simulate not in self.sessions:
            how = RUNTIMES[self.asked["runtime"]]
            self.sessions[simulate] = how(self.asked["load"], self.asked["threads"], self.px, simulate)
        return self.sessions[simulate]

    def load(self, message: dict[str, Any]) -> dict[str, Any]:
        """Open the model and keep the images of the timed queries, each one contiguous."""
        images_NHWC = np.array(np.load(message["images"], mmap_mode="r")[:DISTINCT])
        self.asked, self.px = message, images_NHWC.shape[1]
        self.sessions.clear()
        self.queue = itertools.cycle([images_NHWC[at : at + 1] for at in range(len(images_NHWC))])
        started = time.monotonic()
        facts = self.session(bool(message.get("simulate"))).facts()
        return {"loaded": message["load"], "seconds": round(time.monotonic() - started, 3), "facts": facts}

    def warm(self, message: dict[str, Any]) -> dict[str, Any]:
        """Queries for so many seconds; one at least."""
        end, queries, session = time.monotonic() + message["warm"], 0, self.session(False)
        while queries == 0 or time.monotonic() < end:
            session(next(self.queue))
            queries += 1
        return {"queries": queries}

    def time(self, message: dict[str, Any]) -> dict[str, Any]:
        """n queries of one image, each begun when the one before is answered."""
        samples_ms, session = [], self.session(False)
        for image_1HWC in itertools.islice(self.queue, message["time"]):
            began = time.perf_counter_ns()
            session(image_1HWC)
            samples_ms.append((time.perf_counter_ns() - began) / 1e6)
        return {"samples_ms": samples_ms}

    def predict(self, message: dict[str, Any]) -> dict[str, Any]:
        """Logits float32 [N, C] of the first images of a file, to another file."""
        images_NHWC = np.load(message["predict"], mmap_mode="r")[: message.get("first")]
        session = self.session(bool(message.get("simulate")))
        starts = range(0, len(images_NHWC), session.batch)
        logits_NC = [session(np.array(images_NHWC[at : at + session.batch])) for at in starts]
        np.save(message["out"], np.concatenate(logits_NC).astype(np.float32))
        return {"images": len(images_NHWC)}


def serve(commands: TextIO, replies: TextIO) -> None:
    """Answer until the commands end or one says quit."""
    worker = Worker()
    for line in commands:
        message = json.loads(line)
        if "quit" in message:
            return
        try:
            reply = worker.answer(message)
        except Exception as error:  # whatever a runtime raises is the result of its model
            reply = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def main() -> None:
    """Keep stdout for the answers alone: what a library prints goes to stderr."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.stdin, replies)


if __name__ == "__main__":
    main()
