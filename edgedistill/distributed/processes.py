"""Training with several processes: their ranks, their shares of the work, and their communication.

`torchrun -m edgedistill train` starts the program several times. The process of rank 0 is the leader: only it decides
and writes files; the other processes wait for its orders (steps/workers.py). The batch of a training step does not
depend on the number of processes: each takes a share of it, batch norm is computed over all of it, and gradients are
averaged. accelerate sets up the process group and wraps the model.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from edgedistill.distributed.device import gpu_count, has_gpu
from edgedistill.errors import EdgeDistillError, InputError

if TYPE_CHECKING:
    import accelerate
    from torch import Tensor, nn

T = TypeVar("T")
ORDER_TIMEOUT = timedelta(days=30)  # how long a process waits for an order; the leader may be measuring on a device
FIX = 'pip install "edgedistill[scale]"'


class WorkAbortedError(Exception):
    """The leader aborted the current work; the process waits for the next order."""


@dataclass(frozen=True, kw_only=True)
class Team:
    """Rank of this process among `size` processes; rank 0 is the leader."""

    rank: int = 0
    size: int = 1

    @property
    def is_leader(self) -> bool:
        """Whether this process decides and writes files."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Slice of `count` images, a multiple of `size`, that this process works on."""
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)


SINGLE_PROCESS = Team()


def team() -> Team:
    """The processes of this training: one, unless torchrun or a similar launcher started several.

    Raises:
        InputError: there are several and accelerate is not installed, or a variable of the launcher is not set.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return SINGLE_PROCESS
    accelerator = process_accelerator()
    if accelerator.num_processes != int(os.environ["WORLD_SIZE"]):
        raise InputError("WORLD_SIZE is set, and LOCAL_RANK is not", "start the processes with torchrun")
    return Team(rank=accelerator.process_index, size=accelerator.num_processes)


@functools.cache
def process_accelerator() -> accelerate.Accelerator:
    """The process's Accelerator: it joins the process group (gloo on CPUs, NCCL on GPUs) and selects a GPU."""
    try:
        from accelerate import Accelerator
    except ImportError:
        raise InputError("several processes need the package accelerate", FIX) from None
    gpus = gpu_count()
    if 0 < gpus < int(os.environ.get("LOCAL_WORLD_SIZE", "1")):
        raise InputError(
            f"{os.environ['LOCAL_WORLD_SIZE']} processes on a machine with {gpus} GPUs",
            f"--nproc-per-node {gpus} at most",
        )
    return Accelerator(cpu=not gpus)


@functools.cache
def _channel() -> Any:
    """A process group for orders, on CPUs: waiting in NCCL keeps a GPU busy and times out after minutes."""
    from torch import distributed

    return distributed.new_group(backend="gloo", timeout=ORDER_TIMEOUT)


def send_order(message: Any) -> None:
    """Send `message` from the leader to the processes that wait in `receive_order`."""
    if team().size > 1:
        _broadcast(message)


def receive_order() -> Any:
    """Wait for the leader's next order and return it."""
    return _broadcast(None)


def _broadcast(message: Any) -> Any:
    from torch import distributed

    team()
    messages = [message]
    with _peer_errors():
        distributed.broadcast_object_list(messages, src=0, group=_channel())
    return messages[0]


@contextmanager
def _peer_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo's, mostly "connection closed by peer"
        reason = str(error).splitlines()[0]
        raise EdgeDistillError(
            f"another process of this training cannot be reached ({reason})",
            "see its last message; between machines see GLOO_SOCKET_IFNAME",
        ) from None


def shut_down() -> None:
    """End the process group."""
    if team().size > 1:
        process_accelerator().end_training()


def run_on_leader(work: Callable[[], object]) -> None:
    """Call `work` on the leader; the other processes wait for it.

    Raises:
        WorkAbortedError: on the other processes, if `work` raised on the leader.
    """
    if team() == SINGLE_PROCESS:
        work()
        return
    if team().is_leader:
        try:
            work()
        except BaseException:
            _broadcast(False)
            raise
        _broadcast(True)
    elif not receive_order():
        raise WorkAbortedError


@contextmanager
def leader_first() -> Iterator[None]:
    """Run the block on the leader before the other processes run it."""
    if team() == SINGLE_PROCESS:
        yield
        return
    with process_accelerator().main_process_first():
        yield


def all_gather(own: T) -> list[T]:
    """The values of all processes, by rank."""
    if team() == SINGLE_PROCESS:
        return [own]
    from torch import distributed

    values: list[Any] = [None] * team().size
    with _peer_errors():
        distributed.all_gather_object(values, own, group=_channel())
    return values


def require_agreement(own: Any, name: str) -> None:
    """Raise EdgeDistillError if `own` differs between the processes; `name` is for the message."""
    values = all_gather(own)
    if any(other != values[0] for other in values):
        raise EdgeDistillError(
            f"the processes do not agree on {name}: {values}",
            "give them one --runs folder on a file system that all of them share",
        )


def mean(values: Tensor) -> Tensor:
    """The mean over the processes."""
    return values if team() == SINGLE_PROCESS else process_accelerator().reduce(values, "mean")


def data_parallel(net: nn.Module) -> nn.Module:
    """Wrap the module so that its gradients are averaged over the processes (DistributedDataParallel)."""
    if team() == SINGLE_PROCESS:
        return net
    process_accelerator().free_memory()  # accelerate keeps the modules it wrapped: a search would keep every candidate
    return process_accelerator().prepare_model(net)  # type: ignore[no-any-return]


def synchronize_batchnorm(model: nn.Module) -> nn.Module:
    """Make the model's batch norms use the batches of all processes; parameters and names stay.

    On GPUs by torch.nn.SyncBatchNorm, which supports only GPU tensors; on CPUs by `CpuSyncBatchNorm`.
    """
    if team() == SINGLE_PROCESS:
        return model
    if has_gpu():
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(model)  # type: ignore[no-any-return]
    from edgedistill.distributed.batchnorm import to_sync_batchnorm

    return to_sync_batchnorm(model)
