"""Checkpoints: last.pt and metrics.jsonl, and how a killed run resumes from them."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from edgedistill.distill.state import State
from edgedistill.distributed import processes
from edgedistill.run import artifacts
from edgedistill.run.files import atomic, json_lines


def save(state: State, step: int, seconds: float, folder: Path) -> None:
    """Write last.pt atomically: the state after `step` steps, which took `seconds` over all processes."""
    parts = {name: part.state_dict() for name, part in state.parts().items()}
    # serialized in memory first: on a full disk torch's own writer raises an error that looks like a bug
    buffer = io.BytesIO()
    torch.save({"step": step, "seconds": seconds, "micro_batches": state.micro_batches.count, **parts}, buffer)
    with atomic(folder / artifacts.LAST_CHECKPOINT.name) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def resume(state: State, folder: Path) -> tuple[int, float]:
    """Load last.pt if it exists; returns the steps done and their seconds.

    metrics.jsonl is cut back to the checkpoint's step. With several processes only the leader writes it.
    """
    checkpoint, lines, leads = (
        folder / artifacts.LAST_CHECKPOINT.name,
        folder / artifacts.METRICS.name,
        processes.team().is_leader,
    )
    if leads:
        folder.mkdir(parents=True, exist_ok=True)
    if not checkpoint.exists():
        if leads:
            lines.unlink(missing_ok=True)
        return 0, 0.0
    device = next(state.model.parameters()).device
    saved: Mapping[str, Any] = torch.load(checkpoint, map_location=device, weights_only=True)
    for name, part in state.parts().items():
        part.load_state_dict(saved[name])
    if processes.team() == processes.SINGLE_PROCESS:
        state.micro_batches.count = int(saved.get("micro_batches", 1))
    step = int(saved["step"])
    if not leads:
        return step, float(saved["seconds"])
    covered = [text + "\n" for line, text in complete_lines(lines) if line["step"] <= step]
    with atomic(lines) as temporary:
        temporary.write_text("".join(covered), encoding="utf-8")
    return step, float(saved["seconds"])


def complete_lines(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the lines of a JSON-lines file, parsed and as text; a line that a kill cut short is skipped."""
    yield from json_lines(path.read_text(encoding="utf-8") if path.exists() else "")
