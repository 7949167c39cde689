"""devices.yaml: the entries, and the command lines that are made of them."""

from __future__ import annotations

import functools
import json
import os
import shlex
from pathlib import Path
from random import Random

import yaml

from edgedistill.agent.backends import BACKENDS
from edgedistill.devices import inventory, shell
from edgedistill.measurements import Device
from tests.fuzz import yaml_inputs
from tests.fuzz.kind import Kind
from tests.fuzz.mutations import COMMANDS, PLACES, TEXTS

NANO = {
    "transport": "ssh",
    "host": "user@nano.local",
    "python": "/home/edge/venv/bin/python",
    "workdir": "/mnt/nvme 2/edgedistill",
    "backends": ["tensorrt", "onnxruntime-cpu"],
}
TREES = [
    {"local": {}, "nano": NANO},
    {"nano": NANO},
    {"here": {"transport": "local", "python": "python3", "workdir": "work"}},
    {"pi": {"transport": "ssh", "host": "[fe80::1%eth0]"}},
]
WORDS = (*NANO, *BACKENDS, "ssh", "local", *COMMANDS, *PLACES)


def call(path: Path) -> None:
    """Load the inventory; every device's command lines must say what the file says, and no more."""
    for device in inventory.load(path).values():
        check_device(device)


def check_device(device: Device) -> None:
    """Check that a device's words reach ssh and the device's shell as words.

    Raises:
        AssertionError: a word could be an option of ssh, cannot be an argument at all, or is more than a word there.
    """
    words = (device.name, device.host, device.python, device.workdir)
    for word in words:
        assert "\0" not in word, f"an argument cannot hold NUL: {word!r}"
        os.fsencode(word)
    assert not device.host.startswith("-"), device.host
    assert not set(device.host) & set(" \t\r\n"), device.host
    if device.transport != "ssh":
        return
    values = {"workdir": device.workdir, "python": device.python, "job": "job-1"}
    line = shell.command(shell.PREPARE, values, ["a.onnx"])
    assert "\n" not in line and "\r" not in line, line
    assert shlex.split(line)[:3] == ["exec", "sh", "-c"]
    script = shlex.split(line)[3]
    for name, text in values.items():
        assignment = shlex.split(script.partition("; LC_ALL=C")[0])
        assert f"{name}={text};" in assignment or f"{name}={text}" in assignment, (name, text, assignment)


def cases() -> list[bytes]:
    """Crafted inventories: every key of every transport with every odd text."""
    entries = ({**NANO, "transport": transport} for transport in ("ssh", "local"))
    texts = (*COMMANDS, *PLACES, *TEXTS, 3, None, [], {}, True, ["ssh"], {"ssh": 1})
    trees = [{"nano": {**entry, key: text}} for entry in entries for key in NANO for text in texts]
    trees += [{text: NANO} for text in texts if isinstance(text, str)]
    return [*(json.dumps(tree).encode() for tree in trees), *yaml_inputs.documents("nano")]


def make(random: Random) -> bytes:
    """An inventory made from one of TREES."""
    return yaml_inputs.made(random, TREES, WORDS)


KIND = Kind(
    name="devices",
    file="devices.yaml",
    valid=lambda: yaml.safe_dump(TREES[0]).encode(),
    make=make,
    call=call,
    inputs=1500,
    lines=True,
    cases=functools.cache(cases),
)
