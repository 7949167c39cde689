"""What the devices of an inventory are, and what they lack for what they are there for: `edgedistill devices`."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgedistill.devices import bench
from edgedistill.devices.inventory import wanted_backends
from edgedistill.errors import EdgeDistillError
from edgedistill.records import Device

ANSWER_S = 90.0  # an Orin that has slept on its disk takes some ten seconds to import TensorRT
ABSENT = "not here"  # how the agent begins the reason why a backend cannot run
NONE = "-"
# fact -> what stands before it
VERSIONS = {"gpu": "", "driver": "driver ", "jetpack": "JetPack ", "l4t": "Jetson Linux "}
COLUMNS = ("device", "reachable", "machine", "Python", "memory", "power mode", "governor")


@dataclass(frozen=True, kw_only=True)
class Probed:
    """One device: what it says of itself, or why it says nothing. `facts` are those of `agent.pyz --facts`."""

    device: Device
    facts: Mapping[str, Any] = field(default_factory=dict)
    trouble: str = ""
    reachable: bool = True

    @property
    def missing(self) -> dict[str, str]:
        """Backend that this device is there for -> why it cannot run there, and the fix."""
        found = self.facts.get("backends", {})
        said = {
            name: str(found.get(name, f"{ABSENT}: its agent does not know it")) for name in wanted_backends(self.device)
        }
        return {name: _reason(state) for name, state in said.items() if not _here(state)}

    @property
    def usable(self) -> bool:
        """It answers, and every backend that it is there for runs."""
        return not self.trouble and not self.missing


def survey(
    devices: Sequence[Device], ask: Callable[[Device], Mapping[str, Any]] | None = None, answer_s: float = ANSWER_S
) -> list[Probed]:
    """Probe all devices at once, each for at most `answer_s` seconds; in their order, never an error.

    Args:
        devices: whom to ask.
        ask: how, `bench.probe` unless given.
        answer_s: how long to wait for each.
    """
    answers: queue.Queue[tuple[int, Probed]] = queue.Queue()
    late = f"no answer within {answer_s:g} s; is it overloaded, or its disk full? ask it again"
    probed = [Probed(device=device, trouble=f"{device.name}: {late}", reachable=False) for device in devices]
    for at, device in enumerate(devices):
        # a thread that waits for a device that hangs must not keep the program from ending
        threading.Thread(target=_put, args=(answers, at, device, ask or bench.probe), daemon=True).start()
    until = time.monotonic() + answer_s
    for _ in devices:
        try:
            at, one = answers.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            break
        probed[at] = one
    return probed


def _put(
    answers: queue.Queue[tuple[int, Probed]], at: int, device: Device, ask: Callable[[Device], Mapping[str, Any]]
) -> None:
    try:
        answers.put((at, Probed(device=device, facts=ask(device))))
    except EdgeDistillError as error:
        answers.put((at, Probed(device=device, trouble=str(error), reachable=_was_reached(error))))
    except Exception as error:
        said = f"{device.name}: unexpected {type(error).__name__}: {error}"
        answers.put((at, Probed(device=device, trouble=said, reachable=False)))


def _was_reached(error: EdgeDistillError) -> bool:
    """Whether it was the device that spoke, and not OpenSSH of its connection (ssh.py)."""
    return not any(sign in str(error) for sign in ("OpenSSH to ", "no program is called ssh"))


def table(probed: Sequence[Probed], why: bool = False) -> str:
    """For people: a row for each device, then what runs there and what is missing.

    Args:
        probed: what `survey` returned.
        why: also say why backends that nobody asked for cannot run.
    """
    rows = [COLUMNS, *(_row(one) for one in probed)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    notes = [line for one in probed for line in _notes(one, why)]
    return "\n".join([*lines, "", *notes])


def as_json(probed: Sequence[Probed]) -> list[dict[str, Any]]:
    """For programs: the same, with every fact."""
    return [
        {
            "device": one.device.name,
            "transport": one.device.transport,
            "host": one.device.host,
            "reachable": one.reachable,
            "usable": one.usable,
            "trouble": one.trouble,
            "wanted": list(wanted_backends(one.device)),
            "missing": {} if one.trouble else one.missing,
            "facts": dict(one.facts),
        }
        for one in probed
    ]


def _row(one: Probed) -> tuple[str, ...]:
    facts = one.facts
    machine = facts.get("board") or facts.get("cpu") or facts.get("machine") or NONE
    governor = ", ".join(facts.get("governor", [])) or NONE
    return (
        one.device.name,
        "yes" if one.reachable else "no",
        str(machine),
        str(facts.get("python", NONE)),
        _memory(facts),
        str(facts.get("power_mode") or NONE),
        governor,
    )


def _memory(facts: Mapping[str, Any]) -> str:
    total, free = facts.get("memory_mb"), facts.get("memory_available_mb")
    if total is None:
        return NONE
    return f"{total / 1000:.1f} GB" if free is None else f"{free / 1000:.1f} of {total / 1000:.1f} GB free"


def _notes(one: Probed, why: bool) -> list[str]:
    if one.trouble:
        return [one.trouble]
    found: Mapping[str, str] = one.facts.get("backends", {})
    runs = [f"{backend} {version}" for backend, version in found.items() if _here(version)]
    unasked = {backend: said for backend, said in found.items() if not _here(said) and backend not in one.missing}
    notes = [about for about in [_about(one.facts)] if about]
    notes.append(f"runs {', '.join(runs) or 'nothing'}")
    notes += [f"missing {backend}: {reason}" for backend, reason in one.missing.items()]
    if why:
        notes += [f"without {backend}: {_reason(said)}" for backend, said in unasked.items()]
    elif unasked:
        notes.append(f"without {', '.join(unasked)}; `edgedistill devices {one.device.name}` says why")
    return [f"{one.device.name}: {note}" for note in notes]


def _about(facts: Mapping[str, Any]) -> str:
    """Versions below the runtimes, and what would make a measurement there noisy."""
    said = [f"{before}{facts[name]}" for name, before in VERSIONS.items() if isinstance(facts.get(name), str)]
    said += [f"{kind} clock follows the load" for kind, fixed in facts.get("fixed_clocks", {}).items() if not fixed]
    said += [f"throttling: {', '.join(facts['throttling'])}"] if facts.get("throttling") else []
    return ", ".join(said)


def _here(version: str) -> bool:
    return not version.startswith(ABSENT)


def _reason(said: str) -> str:
    return said.removeprefix(f"{ABSENT}: ")
