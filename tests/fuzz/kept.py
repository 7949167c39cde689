"""kept.jsonl, the list of the frames that label.py has kept, as a later session reads it on a device."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from edgedistill.agent.unsure import Answer, Keeper
from tests.fuzz import json_inputs
from tests.fuzz.kind import Kind
from tests.fuzz.mutations import PLACES

NAMES = tuple(f"kept-{digit * 16}.png" for digit in "0123")
LINE: dict[str, Any] = {
    "file": NAMES[0],
    "label": "cat",
    "probability": 0.4,
    "unknown": True,
    "time": "2026-01-02T03:04:05Z",
}
OTHERS = ("mine.png", "link.png")
FRAME_HWC = np.arange(12 * 12 * 3, dtype=np.uint8).reshape(12, 12, 3)


def prepare(folder: Path) -> None:
    """Files of the user, one of them a link that leads out of the folder."""
    (folder / OTHERS[0]).write_bytes(b"not of this program")
    (folder / OTHERS[1]).symlink_to("/etc/passwd")


def make(random: Random) -> bytes:
    """Some lines, each made from a valid one."""
    return b"\n".join(json_inputs.made(random, LINE, (*NAMES, *OTHERS, *PLACES)) for _ in range(random.randint(1, 4)))


def call(path: Path) -> None:
    """Go on with the folder and offer a frame; no other file may be touched, and no more than two frames kept."""
    for number, name in enumerate(NAMES[:3]):
        Image.fromarray(np.roll(FRAME_HWC, 40 * number)).save(path.parent / name)
    (path.parent / NAMES[3]).write_bytes(b"no picture")
    keeper = Keeper(str(path.parent), 2)
    keeper.offer(255 - FRAME_HWC, "cat", Answer(0, 0.5, False))
    pictures = {file.name for file in path.parent.glob("*.png")}
    assert pictures == {entry["file"] for entry in keeper.entries} | set(OTHERS) and len(keeper.entries) <= 2
    assert (path.parent / OTHERS[0]).read_bytes() == b"not of this program" and (path.parent / OTHERS[1]).is_symlink()


def cases() -> list[bytes]:
    """Crafted lists: names out of the folder, probabilities that are none, and documents that are no lines."""
    names = (*PLACES, *OTHERS, "", ".", "..", f"../{NAMES[0]}", f"{NAMES[0]}\n", NAMES[3], 3, None, [NAMES[0]])
    lines = [json.dumps({**LINE, "file": name}) for name in names]
    numbers = ("NaN", "-1", "1e400", "9" * 400, "true", "null", "[]", "-0.0", "1e-320")
    lines += [json.dumps({**LINE, "probability": "NUMBER"}).replace('"NUMBER"', number) for number in numbers]
    lines += ["\n".join([json.dumps(LINE)] * 5)]
    return [*(line.encode() for line in lines), *json_inputs.documents("file")]


KIND = Kind(
    name="kept",
    file="kept.jsonl",
    valid=lambda: json.dumps(LINE).encode(),
    make=make,
    call=call,
    inputs=500,
    prepare=prepare,
    cases=functools.cache(cases),
)
