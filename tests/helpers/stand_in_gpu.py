"""A stand-in for a GPU: tensors say that they are on "cuda", hold their values on the CPU, and refuse to be mixed.

FakeTensorMode knows devices but no values: the weak view of `fixmatch`, `item` and the check for a finite loss end it,
and autograd on its CUDA tensors needs CUDA. Tensors of this stand-in have values, and autograd takes them for meta
tensors, which it accepts without a device. So whole trainings run, backward pass included, and what they compute can be
compared with a CPU. What mixes devices raises the error that CUDA raises.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten
# ops that take tensors of two devices in CUDA, too: copies, and a selection by indices on the CPU
MIXING = {aten.copy_.default, aten._to_copy.default}
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}
# what needs to know values of the GPU: a number, or how many elements a mask selects
READING = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default}
WAITS: list[str] = []  # what would have made the CPU wait for the GPU: reads, and copies that are not queued


class GpuTensor(torch.Tensor):
    """A tensor on the stand-in; `cpu_values` are its values."""

    cpu_values: torch.Tensor

    @staticmethod
    def __new__(cls, cpu_values: torch.Tensor) -> GpuTensor:
        assert type(cpu_values) is torch.Tensor
        tensor: GpuTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            cpu_values.size(),
            strides=cpu_values.stride(),
            storage_offset=cpu_values.storage_offset(),
            dtype=cpu_values.dtype,
            device="meta",
        )
        tensor.cpu_values = cpu_values
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The stand-in's device."""
        return CUDA

    is_cuda = True  # type: ignore[assignment]
    is_meta = False  # type: ignore[assignment]

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        """The values, and that they are on the stand-in."""
        return f"GpuTensor({self.cpu_values})"

    def tolist(self) -> Any:
        """The values."""
        WAITS.append("tolist")
        return self.cpu_values.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """Raise as CUDA does."""
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def __array__(self, dtype: Any = None) -> Any:
        """Raise as CUDA does."""
        return self.numpy()

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        """A copy on the stand-in; a parameter stays one."""
        copied: torch.Tensor = GpuTensor(self.cpu_values.detach().clone())
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Saved as its values; `torch.load` of the stand-in moves them back."""
        return self.cpu_values.detach().__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        to_cpu = False
        if (device := kwargs.get("device")) is not None:
            to_cpu = torch.device(device).type == "cpu"
            kwargs["device"] = "cpu"
        check_devices(func, args, kwargs)
        if to_cpu or func in READING or selects_by_mask(func, args):
            WAITS.append(str(func))
        inner = func(*tree_map(_values, args), **tree_map(_values, kwargs))
        if to_cpu:
            return inner.clone() if func is aten._to_copy.default else inner
        outputs = tree_map(lambda leaf: cls(leaf) if type(leaf) is torch.Tensor else leaf, inner)
        return return_and_correct_aliasing(func, args, kwargs, outputs)


def _values(leaf: Any) -> Any:
    return leaf.cpu_values if isinstance(leaf, GpuTensor) else leaf


def check_devices(func: Any, args: Any, kwargs: Any) -> None:
    """Raise where CUDA would: a tensor of the CPU with dimensions, and one of the GPU, in the same operation."""
    if func in MIXING:
        return
    if func in INDEXING and isinstance(args[0], GpuTensor):
        args = (args[0], *args[2:])
    leaves = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
    if any(not isinstance(leaf, GpuTensor) and leaf.ndim for leaf in leaves):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found cuda:0 and cpu ({func})")


def selects_by_mask(func: Any, args: Any) -> bool:
    """Whether elements are selected by a mask on the GPU, or by indices on the CPU, which are copied first."""
    indices = args[1] if func in INDEXING else []
    return any(
        index.dtype in (torch.bool, torch.uint8) if isinstance(index, GpuTensor) else index.ndim > 0
        for index in indices
        if index is not None
    )


def is_cuda(device: Any) -> bool:
    """Whether an argument names a GPU."""
    return isinstance(device, torch.device | str) and torch.device(device).type == "cuda"


class Factories(TorchFunctionMode):
    """Sends `device="cuda"` and `.to("cuda")` to the stand-in; torch without CUDA would refuse them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.to or func is torch.Tensor.cuda:
            rest = [argument for argument in args[1:] if not is_cuda(argument)]
            named = {name: argument for name, argument in kwargs.items() if not is_cuda(argument)}
            queued = named.pop("non_blocking", False)
            if func is torch.Tensor.cuda or any(map(is_cuda, [*args[1:], *kwargs.values()])):
                if not queued and not isinstance(args[0], GpuTensor):
                    WAITS.append("blocking copy to the GPU")
                return self._moved(args[0], [part for part in rest if not isinstance(part, bool)], named)
        if is_cuda(kwargs.get("device")):
            if kwargs.get("generator") is not None:
                raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
            if func in (torch.tensor, torch.as_tensor):
                WAITS.append("numbers copied to the GPU")
            return GpuTensor(func(*args, **{**kwargs, "device": "cpu"}))
        return func(*args, **kwargs)

    @staticmethod
    def _moved(tensor: torch.Tensor, rest: list[Any], named: dict[str, Any]) -> torch.Tensor:
        values = _values(tensor).detach()
        rest = [part for part in rest if part is not None]
        named = {name: part for name, part in named.items() if part is not None}
        if rest or named:
            values = values.to(*rest, **named)
        if isinstance(tensor, GpuTensor) and values is tensor.cpu_values:
            return tensor
        return GpuTensor(values.clone() if not isinstance(tensor, GpuTensor) else values)


class Constants(TorchDispatchMode):
    """Makes the constants of autograd's own formulas on the stand-in: they ask for the device that autograd sees."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("device") == torch.device("meta") and not types:
            return GpuTensor(func(*args, **{**kwargs, "device": "cpu"}))
        return func(*args, **kwargs)


@contextlib.contextmanager
def stand_in_gpu() -> Iterator[list[Any]]:
    """Torch finds one GPU, the stand-in; yields the devices whose random state was kept."""
    kept: list[Any] = []
    fork_rng, load = torch.random.fork_rng, torch.load

    def fork(devices: Any = None, **settings: Any) -> Any:
        kept.extend(devices or [])
        return fork_rng(devices=[], **settings)

    def load_there(*args: Any, map_location: Any = None, **settings: Any) -> Any:
        loaded = load(*args, map_location="cpu", **settings)
        move: Callable[[Any], Any] = lambda leaf: GpuTensor(leaf) if type(leaf) is torch.Tensor else leaf  # noqa: E731
        return tree_map(move, loaded) if is_cuda(map_location) else loaded

    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    with pytest.MonkeyPatch.context() as patch, Factories(), Constants():
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *args, **settings: True)
        patch.setattr(torch.cuda, "empty_cache", lambda: None)
        # asks the driver whether a CUDA graph is being captured
        no_check: Callable[[Any], None] = lambda optimizer: None  # noqa: E731
        for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
            patch.setattr(torch.optim.Optimizer, name, no_check, raising=False)
        patch.setattr(torch.random, "fork_rng", fork)
        patch.setattr(torch, "load", load_there)
        patch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
        patch.setattr(torch, "set_float32_matmul_precision", lambda precision: None)  # the process's own, on a CPU
        patch.setattr(torch, "inference_mode", torch.no_grad)  # wrapped tensors have version counters
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            yield kept
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(overwrites)
