"""The state of an inventory's devices, and the backends that they lack: `edgedistill devices`."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgedistill.console import aligned
from edgedistill.devices import bench
from edgedistill.devices.inventory import backends_for
from edgedistill.errors import EdgeDistillError
from edgedistill.measurements import Device
from edgedistill.run import interrupts

ANSWER_S = 90.0  # an Orin with a cold disk cache takes some ten seconds to import TensorRT
CLEAN_UP_S = 2.0  # for the threads to remove their folders after an interruption
ABSENT = "not here"  # prefix of the agent's reason why a backend cannot run
EMPTY_CELL = "-"
# fact -> prefix in the line of versions
VERSIONS = {"gpu": "", "driver": "driver ", "jetpack": "JetPack ", "l4t": "Jetson Linux "}
COLUMNS = ("device", "reachable", "machine", "Python", "memory", "power mode", "governor")


@dataclass(frozen=True, kw_only=True)
class DeviceStatus:
    """The facts of one device, as printed by `agent.pyz --facts`, or the trouble that prevented them."""

    device: Device
    facts: Mapping[str, Any] = field(default_factory=dict)
    trouble: str = ""
    reachable: bool = True

    @property
    def missing(self) -> dict[str, str]:
        """Backend configured for this device -> why it cannot run there, and the fix."""
        versions = self.facts.get("backends", {})
        states = {
            name: str(versions.get(name, f"{ABSENT}: its agent does not know it")) for name in backends_for(self.device)
        }
        return {name: _reason(state) for name, state in states.items() if not _is_available(state)}

    @property
    def usable(self) -> bool:
        """Whether it answers and every backend configured for it runs."""
        return not self.trouble and not self.missing


def survey(
    devices: Sequence[Device], probe: Callable[[Device], Mapping[str, Any]] | None = None, answer_s: float = ANSWER_S
) -> list[DeviceStatus]:
    """Probe all devices in parallel; returns one status each, in their order, and raises no error.

    Args:
        devices: the devices to probe.
        probe: the function that reads a device's facts, by default `bench.probe`.
        answer_s: seconds to wait for each.
    """
    answers: queue.Queue[tuple[int, DeviceStatus]] = queue.Queue()
    late = f"no answer within {answer_s:g} s; is it overloaded, or its disk full? ask it again"
    statuses = [DeviceStatus(device=device, trouble=f"{device.name}: {late}", reachable=False) for device in devices]
    threads = [
        # a daemon thread: a device that hangs must not keep the program from ending
        threading.Thread(target=_probe_device, args=(answers, index, device, probe or bench.probe), daemon=True)
        for index, device in enumerate(devices)
    ]
    deadline = time.monotonic() + answer_s
    try:
        for thread in threads:
            thread.start()
        for _ in devices:
            index, status = answers.get(timeout=max(0.0, deadline - time.monotonic()))
            statuses[index] = status
    except queue.Empty:
        pass
    except KeyboardInterrupt:
        _abandon(threads)
        raise
    return statuses


def _abandon(threads: Sequence[threading.Thread]) -> None:
    """End the programs that the threads wait for, and let them remove their folders."""
    interrupts.end_children()
    deadline = time.monotonic() + CLEAN_UP_S
    for thread in threads:
        if thread.is_alive():
            thread.join(max(0.0, deadline - time.monotonic()))


def _probe_device(
    answers: queue.Queue[tuple[int, DeviceStatus]],
    index: int,
    device: Device,
    probe: Callable[[Device], Mapping[str, Any]],
) -> None:
    try:
        answers.put((index, DeviceStatus(device=device, facts=probe(device))))
    except EdgeDistillError as error:
        answers.put((index, DeviceStatus(device=device, trouble=str(error), reachable=_was_reached(error))))
    except Exception as error:
        trouble = f"{device.name}: unexpected {type(error).__name__}: {error}"
        answers.put((index, DeviceStatus(device=device, trouble=trouble, reachable=False)))


def _was_reached(error: EdgeDistillError) -> bool:
    """Whether the error comes from the device and not from OpenSSH's connection (ssh.py)."""
    return not any(sign in str(error) for sign in ("OpenSSH to ", "no program is called ssh"))


def table(statuses: Sequence[DeviceStatus], why: bool = False) -> str:
    """Format statuses as text: one row per device, then the backends that run there and those that are missing.

    Args:
        statuses: statuses from `survey`.
        why: also explain why backends that are not configured cannot run.
    """
    rows = [COLUMNS, *(_row(status) for status in statuses)]
    notes = [line for status in statuses for line in _notes(status, why)]
    return "\n".join([*aligned(rows), "", *notes])


def as_json(statuses: Sequence[DeviceStatus]) -> list[dict[str, Any]]:
    """Format statuses for programs, with every fact."""
    return [
        {
            "device": status.device.name,
            "transport": status.device.transport,
            "host": status.device.host,
            "reachable": status.reachable,
            "usable": status.usable,
            "trouble": status.trouble,
            "wanted": list(backends_for(status.device)),
            "missing": {} if status.trouble else status.missing,
            "facts": dict(status.facts),
        }
        for status in statuses
    ]


def _row(status: DeviceStatus) -> tuple[str, ...]:
    facts = status.facts
    machine = facts.get("board") or facts.get("cpu") or facts.get("machine") or EMPTY_CELL
    governor = ", ".join(facts.get("governor", [])) or EMPTY_CELL
    return (
        status.device.name,
        "yes" if status.reachable else "no",
        str(machine),
        str(facts.get("python", EMPTY_CELL)),
        _memory(facts),
        str(facts.get("power_mode") or EMPTY_CELL),
        governor,
    )


def _memory(facts: Mapping[str, Any]) -> str:
    total, free = facts.get("memory_mb"), facts.get("memory_available_mb")
    if total is None:
        return EMPTY_CELL
    return f"{total / 1000:.1f} GB" if free is None else f"{free / 1000:.1f} of {total / 1000:.1f} GB free"


def _notes(status: DeviceStatus, explain: bool) -> list[str]:
    if status.trouble:
        return [status.trouble]
    versions: Mapping[str, str] = status.facts.get("backends", {})
    runs = [f"{backend} {version}" for backend, version in versions.items() if _is_available(version)]
    unasked = {
        backend: version
        for backend, version in versions.items()
        if not _is_available(version) and backend not in status.missing
    }
    notes = [about for about in [_facts_line(status.facts)] if about]
    notes.append(f"runs {', '.join(runs) or 'nothing'}")
    notes += [f"missing {backend}: {reason}" for backend, reason in status.missing.items()]
    if explain:
        notes += [f"without {backend}: {_reason(version)}" for backend, version in unasked.items()]
    elif unasked:
        notes.append(f"without {', '.join(unasked)}; `edgedistill devices {status.device.name}` says why")
    return [f"{status.device.name}: {note}" for note in notes]


def _facts_line(facts: Mapping[str, Any]) -> str:
    """One line of driver versions and of conditions that make measurements noisy."""
    parts = [f"{prefix}{facts[name]}" for name, prefix in VERSIONS.items() if isinstance(facts.get(name), str)]
    parts += [f"{kind} clock follows the load" for kind, fixed in facts.get("fixed_clocks", {}).items() if not fixed]
    parts += [f"throttling: {', '.join(facts['throttling'])}"] if facts.get("throttling") else []
    return ", ".join(parts)


def _is_available(version: str) -> bool:
    return not version.startswith(ABSENT)


def _reason(state: str) -> str:
    return state.removeprefix(f"{ABSENT}: ")
