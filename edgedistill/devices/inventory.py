"""The inventory: deploy/devices.yaml -> Device by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgedistill.agent.backends import BACKENDS
from edgedistill.errors import InputError
from edgedistill.measurements import Device
from edgedistill.recipe.options import did_you_mean
from edgedistill.recipe.yaml_text import YamlTextError, parse

TRANSPORTS = ("local", "ssh")
STRING_KEYS = ("transport", "host", "python", "workdir")
KEYS = (*STRING_KEYS, "backends")
DEFAULT_BACKENDS = ("onnxruntime-cpu",)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# a host that starts with a dash would be read as an option of ssh
HOST = re.compile(r"[A-Za-z0-9_\[][^\s]*")
# paths that every login shell leaves unchanged in quotes (ssh.py); a quoted ~ would be a folder of that name
WORKDIR = re.compile(r"[^-~\s!\\][^!\\\x00-\x1f\x7f]*")
DEFAULT_PATH = Path("deploy/devices.yaml")


def path_for(recipe_path: str | None, base: Path) -> Path | None:
    """The path of the inventory: the recipe's, else deploy/devices.yaml of the current folder, else None."""
    if recipe_path is not None:
        return base / recipe_path
    return DEFAULT_PATH if DEFAULT_PATH.is_file() else None


def load(path: Path | None) -> dict[str, Device]:
    """Load the devices of an inventory file, name -> Device, with "local" always included.

    Args:
        path: a YAML file of name: {transport, host, python, workdir, backends}; None for this machine alone.

    Raises:
        InputError: the file is missing, is not such a mapping, or an entry is wrong; one line per problem.
    """
    raw, problems = ({}, []) if path is None else _read(path)
    problems += [f"{path}: {name}: {problem}" for name, entry in raw.items() for problem in _problems(name, entry)]
    if problems:
        raise InputError(problems)
    return {"local": Device(name="local"), **{name: _device(name, **entry) for name, entry in raw.items()}}


def find(devices: Mapping[str, Device], name: str) -> Device:
    """Return the device called `name`.

    Raises:
        InputError: there is none; the message suggests the nearest name.
    """
    if name not in devices:
        raise InputError(
            f"no device is called {name}{did_you_mean(name, devices)}",
            f"add it to {DEFAULT_PATH} in the current folder, or to the file that bench.inventory names",
        )
    return devices[name]


def backends_for(device: Device, requested: Sequence[str] = ()) -> tuple[str, ...]:
    """The backends to measure: the requested ones, else the inventory's, else ONNX Runtime on the CPU."""
    return tuple(requested) or device.backends or DEFAULT_BACKENDS


def _device(name: str, backends: Sequence[str] = (), **options: str) -> Device:
    return Device(name=name, **options, backends=tuple(backends))


def _read(path: Path) -> tuple[dict[Any, Any], list[str]]:
    """The entries of an inventory file, and its keys that are given twice, one line each."""
    if path.exists() and not path.is_file():  # reading a FIFO may wait for ever
        raise InputError(f"{path}: is not a file", "name an existing inventory file")
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})", "name an existing inventory file") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not text in UTF-8", "is it an inventory?") from None
    except YamlTextError as error:
        place = f"{path}:{error.line}" if error.line else str(path)
        raise InputError(f"{place}: {error}") from None
    raw = content.plain
    if raw is None:
        return {}, []
    if not isinstance(raw, dict):
        raise InputError(f"{path}: must map device names to {{{', '.join(KEYS)}}}", "see docs/devices.md")
    return raw, [f"{path}:{key.line}: {'.'.join(map(str, key.key))}: {key.message}" for key in content.duplicates]


def _problems(name: Any, entry: Any) -> list[str]:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        return ["a device's name is made of letters, digits and . _ -"]
    if not isinstance(entry, dict):
        return [f"must be a mapping of {', '.join(KEYS)}"]
    unknown = [f"unknown key {key}{did_you_mean(str(key), KEYS)}" for key in entry if key not in KEYS]
    texts = [
        f"{key}: must be a string{', without tabs and line ends' if isinstance(text, str) else ''} (got {text!r})"
        for key, text in entry.items()
        if key in STRING_KEYS and not (isinstance(text, str) and not set(text) & set("\t\r\n\0"))
    ]
    if name == "local" and entry.get("transport") == "ssh":
        return ["transport: local is this machine; give another one another name"]
    return unknown or texts or _place_problems(entry) + _backend_problems(entry.get("backends", []))


def _backend_problems(backends: Any) -> list[str]:
    if not isinstance(backends, list):
        return [f"backends: must be a list, such as [onnxruntime-cpu] (got {backends!r})"]
    problems = [
        f"backends: no backend is called {name}{did_you_mean(str(name), BACKENDS)}"
        for name in backends
        if str(name) not in BACKENDS
    ]
    return problems or ([] if len(set(backends)) == len(backends) else ["backends: one is named twice"])


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
