"""Checkpoints: accepted and refused files, nested state dicts, and how tensors are assigned to an architecture."""

from __future__ import annotations

import contextlib
import logging
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgedistill.errors import InputError
from edgedistill.students.checkpoints import fit_state, read_state


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
    with pytest.raises(InputError, match=r"file: does not fit the net \(0 missing, 2 unexpected\): .*; check `model`"):
        fit_state(target_net, state, "file")


def test_too_few_headless_weights_are_refused() -> None:
    with pytest.raises(InputError, match=r"does not fit the net \(2 missing, 0 unexpected\): fc.weight is absent"):
        fit_state(net(), net(classes=None).state_dict(), "file", headless=True)


@pytest.mark.parametrize("rename", [False, True])
def test_wrong_shape_names_tensor_and_changes_nothing(rename: bool) -> None:
    source_net, target_net = net(classes=5), net(classes=3)
    before = {name: tensor.clone() for name, tensor in target_net.state_dict().items()}
    state = renamed(source_net.state_dict()) if rename else source_net.state_dict()
    with pytest.raises(InputError) as caught:
        fit_state(target_net, state, "file")
    differing = [("fc.weight", (5, 4), (3, 4)), ("fc.bias", (5,), (3,))]
    if rename:
        differing = [("other.6", (5, 4), (3, 4)), ("other.7", (5,), (3,))]
    texts = [f"{name} is {in_file} in the file and {in_net} in the net" for name, in_file, in_net in differing]
    places = [" (fc.weight)", " (fc.bias)"] if rename else ["", ""]
    listed = ", ".join(text + place for text, place in zip(texts, places, strict=True))
    assert str(caught.value) == f"file: does not fit the net (0 missing, 0 unexpected): {listed}; check `model`"
    assert all(torch.equal(tensor, before[name]) for name, tensor in target_net.state_dict().items())


PREFIXES = ["module.", "_orig_mod.", "model.", "module._orig_mod.", "model.module._orig_mod.model."]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_shared_prefixes_are_removed(tmp_path: Path, prefix: str, suffix: str) -> None:
    source_net, target_net = net(), net()
    # in reverse, so that nothing fits by its place
    state = {f"{prefix}{name}": tensor for name, tensor in reversed(source_net.state_dict().items())}
    file = tmp_path / f"model{suffix}"
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    assert set(read_state(file)) == set(source_net.state_dict())
    fit_state(target_net, read_state(file), "file")
    assert equal(target_net, source_net)


def test_net_whose_own_names_have_a_prefix_keeps_fitting(tmp_path: Path) -> None:
    source_net, target_net = (nn.Sequential(OrderedDict(model=net())) for _ in range(2))
    save_file(source_net.state_dict(), tmp_path / "model.safetensors")
    for state in (read_state(tmp_path / "model.safetensors"), {**source_net.state_dict(), "extra": torch.ones(1)}):
        fit_state(target_net, dict(reversed(state.items())), "file", headless=True)
        assert equal(target_net, source_net)


@pytest.mark.parametrize("keys", ["state_dict", "model", "model_state_dict", "model state_dict"])
def test_nested_state_dicts_are_opened(tmp_path: Path, keys: str) -> None:
    content: dict[str, object] = {"module.a": torch.ones(2)}
    for key in reversed(keys.split()):
        content = {"epoch": 3, "optimizer": {"state": {0: {"step": torch.ones(1)}}}, key: content}
    torch.save(content, tmp_path / "model.pth")
    assert list(read_state(tmp_path / "model.pth")) == ["a"]


@pytest.mark.parametrize("key", ["model_ema", "state_dict_ema", "ema"])
@pytest.mark.parametrize("nested", [False, True])
def test_averaged_weights_are_preferred_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, key: str, nested: bool
) -> None:
    averaged: dict[str, object] = {"n_averaged": torch.tensor(5), "module.a": torch.full((2,), 7.0)}
    state = {"a": torch.ones(2), "n.num_batches_tracked": torch.tensor(1)}
    torch.save({"model": state, key: {"state_dict": averaged} if nested else averaged}, tmp_path / "model.pth")
    with caplog.at_level(logging.WARNING):
        tensors = read_state(tmp_path / "model.pth")
    assert list(tensors) == ["a"] and tensors["a"].tolist() == [7.0, 7.0]
    assert caplog.messages == [f"{tmp_path / 'model.pth'}: the EMA weights ({key}) are used"]


def test_averages_that_lack_tensors_are_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = {"a": torch.ones(2), "b": torch.ones(2)}
    for averaged in (None, {"decay": 0.9}, {"a": torch.zeros(2)}):
        torch.save({"model": state, "model_ema": averaged}, tmp_path / "model.pth")
        assert read_state(tmp_path / "model.pth")["a"].tolist() == [1.0, 1.0]
    assert caplog.messages == [f"{tmp_path / 'model.pth'}: the EMA weights (model_ema) lack tensors and are not used"]


@pytest.mark.parametrize("rename", [False, True])
def test_file_without_classifier_serves_features_only(rename: bool) -> None:
    source_net, backbone = net(classes=None), net(classes=None)
    state = renamed(source_net.state_dict()) if rename else source_net.state_dict()
    fit_state(backbone, state, "file", headless=True)
    assert equal(backbone, source_net)
    with pytest.raises(InputError) as caught:
        fit_state(net(), state, "file")
    assert str(caught.value) == (
        "file: holds no classifier: fc.weight, fc.bias missing; "
        "use a file with the classifier that the weights were trained with"
    )


def test_first_three_differing_tensors_are_listed_with_counts() -> None:
    state = {**net(classes=5).state_dict(), "extra": torch.ones(1)}
    del state["norm.weight"]
    with pytest.raises(InputError) as caught:
        fit_state(net(), state, "file")
    assert str(caught.value) == (
        "file: does not fit the net (1 missing, 1 unexpected): "
        "norm.weight is absent in the file and (4,) in the net, fc.weight is (5, 4) in the file and (3, 4) in the net, "
        "fc.bias is (5,) in the file and (3,) in the net; check `model`"
    )


def test_prefix_problem_gets_its_own_advice() -> None:
    state = net().state_dict()
    longer = {"criterion.weight": torch.ones(1), **{f"encoder.{name}": tensor for name, tensor in state.items()}}
    with pytest.raises(InputError, match=r"the names in the file begin with `encoder\.`") as caught:
        fit_state(net(), longer, "file")
    assert "check `model`" not in str(caught.value)
    wrapped = nn.Sequential(OrderedDict(backbone=net(), head=nn.Linear(3, 2)))
    with pytest.raises(InputError, match=r"the names in the file lack `backbone\.`") as caught:
        fit_state(wrapped, dict(reversed(state.items())), "file")
    assert "check `model`" not in str(caught.value)


def test_broken_bytes_are_refused_whatever_torch_raises(tmp_path: Path) -> None:
    file = tmp_path / "model.pth"
    for zipped in (True, False):
        torch.save({"a": torch.ones(3), "b": torch.zeros(2, 2)}, file, _use_new_zipfile_serialization=zipped)
        whole = file.read_bytes()
        for place in range(0, min(len(whole), 700), 7):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x2A]) + whole[place + 1 :])
            with contextlib.suppress(InputError):
                read_state(file)
    for content in (b"\x80\x02" + b"]" * 9, b"(" * 1000, pickle.dumps(pickle.loads), b"\x80\x02."):
        file.write_bytes(content)
        with pytest.raises(InputError):
            read_state(file)


def test_mapping_that_holds_itself_is_no_state_dict(tmp_path: Path) -> None:
    content: dict[str, object] = {}
    content.update(dict.fromkeys(("model", "state_dict", "ema"), content))
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(InputError, match="not a state dict"):
        read_state(tmp_path / "model.pth")


def test_sorted_tensors_with_other_names_are_refused() -> None:
    """safetensors files are sorted by name: the tensors of a batch norm then come in another order than the net's."""
    state = net(classes=None).state_dict()
    renamed_state = {f"backbone.{name}": state[name] for name in sorted(state)}
    with pytest.raises(InputError, match=r"file: its tensors have other names and another order than the net's"):
        fit_state(net(classes=None), renamed_state, "file")
