"""The inventory: deploy/devices.yaml -> Device by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from edgedistill.agent.backends import BACKENDS
from edgedistill.errors import InputError
from edgedistill.recipe.options import did_you_mean
from edgedistill.records import Device

TRANSPORTS = ("local", "ssh")
TEXTS = ("transport", "host", "python", "workdir")
KEYS = (*TEXTS, "backends")
DEFAULT_BACKENDS = ("onnxruntime-cpu",)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# a host that starts with a dash would be read as an option of ssh
HOST = re.compile(r"[A-Za-z0-9_\[][^\s]*")
# what every login shell takes as it is in quotes (ssh.py); a ~ would not be the home but a folder of that name
WORKDIR = re.compile(r"[^-~\s!\\][^!\\\x00-\x1f\x7f]*")


DEFAULT = Path("deploy/devices.yaml")


def path_for(named: str | None, base: Path) -> Path | None:
    """Where the inventory is: the file a recipe names, else deploy/devices.yaml of the current folder, else none."""
    if named is not None:
        return base / named
    return DEFAULT if DEFAULT.is_file() else None


def load(path: Path | None) -> dict[str, Device]:
    """The devices of an inventory file, name -> Device; "local" is always among them.

    Args:
        path: a YAML file of name: {transport, host, python, workdir, backends}; None for this machine alone.

    Raises:
        InputError: the file is missing, is not such a mapping, or an entry is wrong; every problem, a line each.
    """
    raw = {} if path is None else _read(path)
    problems = [f"{path}: {name}: {problem}" for name, entry in raw.items() for problem in _problems(name, entry)]
    if problems:
        raise InputError("\n".join(problems))
    return {"local": Device(name="local"), **{name: _device(name, **entry) for name, entry in raw.items()}}


def find(devices: Mapping[str, Device], name: str) -> Device:
    """The device called `name`.

    Raises:
        InputError: there is none; the message gives the nearest name.
    """
    if name not in devices:
        raise InputError(
            f"no device is called {name}{did_you_mean(name, devices)}", "devices are in deploy/devices.yaml"
        )
    return devices[name]


def wanted_backends(device: Device, asked: Sequence[str] = ()) -> tuple[str, ...]:
    """What to measure with there: what was asked for, else what the inventory says, else ONNX Runtime on the CPU."""
    return tuple(asked) or device.backends or DEFAULT_BACKENDS


def _device(name: str, backends: Sequence[str] = (), **place: str) -> Device:
    return Device(name=name, **place, backends=tuple(backends))


def _read(path: Path) -> dict[Any, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})", "name an existing inventory file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise InputError(f"{path}: must map device names to {{{', '.join(KEYS)}}}")
    return raw


def _problems(name: Any, entry: Any) -> list[str]:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        return ["a device's name is made of letters, digits and . _ -"]
    if not isinstance(entry, dict):
        return [f"must be a mapping of {', '.join(KEYS)}"]
    unknown = [f"unknown key {key}{did_you_mean(str(key), KEYS)}" for key in entry if key not in KEYS]
    texts = [
        f"{key}: must be a string (got {value!r})"
        for key, value in entry.items()
        if key in TEXTS and not isinstance(value, str)
    ]
    if name == "local" and entry.get("transport") == "ssh":
        return ["transport: local is this machine; give another one another name"]
    return unknown or texts or _place_problems(entry) + _backend_problems(entry.get("backends", []))


def _backend_problems(named: Any) -> list[str]:
    if not isinstance(named, list):
        return [f"backends: must be a list, such as [onnxruntime-cpu] (got {named!r})"]
    problems = [
        f"backends: no backend is called {name}{did_you_mean(str(name), BACKENDS)}"
        for name in named
        if str(name) not in BACKENDS
    ]
    return problems or ([] if len(set(named)) == len(named) else ["backends: one is named twice"])


def _place_problems(entry: Mapping[str, str]) -> list[str]:
    transport, host, workdir = entry.get("transport", "local"), entry.get("host", ""), entry.get("workdir", "")
    python = entry.get("python", "")
    if python.startswith("~") or ("/" in python and not python.startswith("/")):
        return [f"python: {python!r}: give the full path, or the name of a program; nothing expands ~ there"]
    if transport not in TRANSPORTS:
        return [f"transport: {transport} is unknown{did_you_mean(transport, TRANSPORTS)}"]
    if transport == "local":
        return ["host: belongs to transport: ssh; add it or leave host out"] if host else []
    problems = []
    if not host:
        problems.append("host: is required for transport: ssh; give an alias of ~/.ssh/config or user@host")
    elif not HOST.fullmatch(host):
        problems.append(f"host: {host!r} is no host; give an alias of ~/.ssh/config or user@host")
    if workdir and not WORKDIR.fullmatch(workdir):
        problems.append(f"workdir: {workdir!r}: no ! or \\ in it, no - or ~ first; a relative path starts at the home")
    return problems
