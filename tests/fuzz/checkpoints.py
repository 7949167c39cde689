"""Weights files: read as a state dict, and fitted into a net; a pickle never runs."""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import struct
import subprocess
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from edgedistill.students.checkpoints import fit_state, read_state
from tests.fuzz.kind import CANARY, Kind
from tests.fuzz.mutations import changed_tree, mangled


def net() -> nn.Module:
    """A net of two layers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


def saved(content: Any, **settings: Any) -> bytes:
    """The bytes of torch.save."""
    stream = io.BytesIO()
    torch.save(content, stream, **settings)
    return stream.getvalue()


@functools.cache
def encoded() -> list[bytes]:
    """The net's state dict in every format, and nested as checkpoints of trainers are."""
    state = net().state_dict()
    prefixed = {f"module.{name}": tensor for name, tensor in state.items()}
    return [
        save(state),
        saved(state),
        saved(state, _use_new_zipfile_serialization=False),
        saved({"state_dict": prefixed, "epoch": 3, "optimizer": {"lr": 0.1}}),
        saved({"model": state, "model_ema": {**state, "n_averaged": torch.tensor(3)}}),
    ]


def make(random: Random) -> bytes:
    """A file with changed bytes, or with another header or other contents."""
    change = random.random()
    if change < 0.6:
        return mangled(random, random.choice(encoded()))
    if change < 0.85:
        header = {
            "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
            "b": {"dtype": "I64", "shape": [1], "data_offsets": [16, 24]},
            "__metadata__": {"format": "pt"},
        }
        words = ("dtype", "shape", "data_offsets", "F64", "BF16", "BOOL", "F8_E4M3")
        return with_header(json.dumps(changed_tree(random, header, words), default=str).encode(), bytes(24))
    state: dict[Any, Any] = dict(net().state_dict())
    odd = (
        None,
        3,
        "x",
        [1],
        {},
        state,
        torch.zeros(0),
        torch.zeros(1).expand(4, 4),
        torch.zeros(3, dtype=torch.complex64),
    )
    key = random.choice((*state, "state_dict", "model", "ema", 3, "", "a\nb", "x" * 5000))
    state[key] = random.choice(odd)
    return saved(random.choice((state, [state], {"model": {"state_dict": {"model": state}}}, odd)))


def with_header(header: bytes, content: bytes, length: int | None = None) -> bytes:
    """A safetensors file with this header."""
    return struct.pack("<Q", len(header) if length is None else length) + header + content


class _Run:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def cases() -> list[bytes]:
    """Pickles that run a program, nested ones, and files that claim more than they hold."""
    command = f"touch {CANARY}"
    programs = [
        _Run(os.system, command),
        _Run(subprocess.Popen, ["touch", CANARY]),
        _Run(eval, "1"),
        _Run(open, CANARY, "w"),
    ]
    nested: Any = {}
    for _ in range(400):
        nested = {"model": nested}
    itself: dict[str, Any] = {}
    itself["model"] = itself
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as files:
        files.writestr("archive/data.pkl", bytes(200_000_000))
        files.writestr("archive/version", "3")
    claim = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    return [
        *(pickle.dumps(program) for program in programs),
        *(pickle.dumps({"model": program}, protocol=2) for program in programs),
        *(saved(program) for program in programs),
        *(saved(content) for content in (net(), nested, itself, [], {}, 3, None, {"model": None}, {1: torch.zeros(2)})),
        *(
            b"",
            b"{}",
            b"\x80\x02.",
            b"\x80\x04N.",
            b"PK\x05\x06" + bytes(18),
            archive.getvalue(),
            b"(" * 100_000,
            b"\x80\x02" + b"]" * 9,
        ),
        *(with_header(b"{}", b"", length) for length in (0, 2, 1 << 32, 1 << 63)),
        *(with_header(header, bytes(16)) for header in (claim, b"[" * 100_000, b"{}", b"null", b'{"a":' * 10_000)),
    ]


def call(path: Path) -> None:
    """Read the bytes as a torch file and as safetensors; what is read must fit, or be refused."""
    other = path.with_suffix(".safetensors")
    other.write_bytes(path.read_bytes())
    chosen = other if path.read_bytes()[8:9] == b"{" else path
    state = read_state(chosen)
    assert all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in state.items())
    fit_state(net(), state, str(chosen))


KIND = Kind(
    name="checkpoint",
    file="weights.pt",
    valid=lambda: encoded()[0],
    make=make,
    call=call,
    inputs=800,
    cases=functools.cache(cases),
)
