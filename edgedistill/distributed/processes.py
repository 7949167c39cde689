"""Several processes at one training: who is who, what each takes, and how they agree.

`torchrun -m edgedistill train` starts one program several times. The first process leads: it alone decides and writes;
the others wait for its orders (crew.py). A step's batch is the same however many they are: each takes a share of it,
batch norm sees the whole of it, and gradients are averaged. accelerate brings the processes up and wraps the model.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from edgedistill.errors import EdgeDistillError, InputError

if TYPE_CHECKING:
    import accelerate
    from torch import Tensor, nn

T = TypeVar("T")
PATIENCE = timedelta(days=30)  # how long a process waits for an order: the leader may be measuring on a device
FIX = 'pip install "edgedistill[scale]"'


class DismissedError(Exception):
    """The leader gave up what everybody was at; the next order comes."""


@dataclass(frozen=True, kw_only=True)
class Team:
    """This process among `size` of them; rank 0 leads."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Does this process decide and write?"""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Which of `count` things, a multiple of `size`, this process takes."""
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)


ALONE = Team()


def team() -> Team:
    """Who works on this training: one process, unless torchrun (or a launcher like it) started several.

    Raises:
        InputError: there are several, and accelerate is not installed, or what a launcher sets is not all there.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    found = _accelerator()
    if found.num_processes != int(os.environ["WORLD_SIZE"]):
        raise InputError("WORLD_SIZE is set, and LOCAL_RANK is not", "start the processes with torchrun")
    return Team(rank=found.process_index, size=found.num_processes)


@functools.cache
def _accelerator() -> accelerate.Accelerator:
    """One a process: it joins the process group, gloo on CPUs and NCCL on GPUs, and takes a GPU of its own."""
    import torch

    try:
        from accelerate import Accelerator
    except ImportError:
        raise InputError("several processes need the package accelerate", FIX) from None
    gpus = torch.cuda.device_count()
    if 0 < gpus < int(os.environ.get("LOCAL_WORLD_SIZE", "1")):
        raise InputError(
            f"{os.environ['LOCAL_WORLD_SIZE']} processes on a machine with {gpus} GPUs",
            f"--nproc-per-node {gpus} at most",
        )
    return Accelerator(cpu=not gpus)


@functools.cache
def _channel() -> Any:
    """A process group for orders, on CPUs: who waits in NCCL keeps a GPU busy and gives up after minutes."""
    from torch import distributed

    return distributed.new_group(backend="gloo", timeout=PATIENCE)


def order(what: Any) -> None:
    """As the leader: hand `what` to everybody who waits in `next_order`."""
    if team().size > 1:
        _broadcast(what)


def next_order() -> Any:
    """As one who is led: what the leader says next."""
    return _broadcast(None)


def _broadcast(what: Any) -> Any:
    from torch import distributed

    team()
    told = [what]
    with _talking():
        distributed.broadcast_object_list(told, src=0, group=_channel())
    return told[0]


@contextmanager
def _talking() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo's: mostly "connection closed by peer"
        what = str(error).splitlines()[0]
        raise EdgeDistillError(
            f"another process of this training cannot be heard ({what})",
            "see what it said last; between machines see GLOO_SOCKET_IFNAME",
        ) from None


def leave() -> None:
    """The end, for everybody."""
    if team().size > 1:
        _accelerator().end_training()


def led(work: Callable[[], object]) -> None:
    """Do `work` on the leader, who decides for all.

    Raises:
        DismissedError: on the others, where `work` raised on the leader.
    """
    if team() == ALONE:
        work()
        return
    if team().leads:
        try:
            work()
        except BaseException:
            _broadcast(False)
            raise
        _broadcast(True)
    elif not next_order():
        raise DismissedError


@contextmanager
def leader_first() -> Iterator[None]:
    """The leader goes through the block before the others do."""
    if team() == ALONE:
        yield
        return
    with _accelerator().main_process_first():
        yield


def gathered(own: T) -> list[T]:
    """What every process has, in the order of their ranks."""
    if team() == ALONE:
        return [own]
    from torch import distributed

    found: list[Any] = [None] * team().size
    with _talking():
        distributed.all_gather_object(found, own, group=_channel())
    return found


def agreed(value: Any, what: str) -> None:
    """Raise EdgeDistillError where `value` is not the same in every process."""
    found = gathered(value)
    if any(one != found[0] for one in found):
        raise EdgeDistillError(
            f"the processes do not agree on {what}: {found}",
            "give them one --runs folder on a file system that all of them share",
        )


def mean(values: Tensor) -> Tensor:
    """The mean over the processes."""
    return values if team() == ALONE else _accelerator().reduce(values, "mean")


def wrapped(net: nn.Module) -> nn.Module:
    """The module with its gradients averaged over the processes (DistributedDataParallel)."""
    if team() == ALONE:
        return net
    _accelerator().free_memory()  # it keeps what it wrapped: a search would keep every candidate
    return _accelerator().prepare_model(net)  # type: ignore[no-any-return]


def synchronised(model: nn.Module) -> nn.Module:
    """The model with batch norm over the whole batch, wherever its images are; parameters and names stay.

    On a GPU by torch.nn.SyncBatchNorm, which takes nothing but a GPU's tensors; on a CPU by `WholeBatchNorm`.
    """
    if team() == ALONE:
        return model
    import torch

    if torch.cuda.is_available():
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(model)  # type: ignore[no-any-return]
    from edgedistill.distributed.batchnorm import whole_batch

    return whole_batch(model)
