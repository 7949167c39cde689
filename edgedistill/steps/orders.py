"""What the leader of several processes orders the others to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgedistill.steps.context import Context


@dataclass(frozen=True, kw_only=True)
class Order:
    """The leader's order to the other processes: a key of workers.WORK, a context, and the work's arguments."""

    context: Context
    work: str
    arguments: dict[str, Any]
