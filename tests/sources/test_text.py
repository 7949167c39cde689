"""The source kind text: zero-shot pseudo-labels of a tiny image-text pair that is built here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgedistill import session
from edgedistill.check import load as load_recipe
from edgedistill.errors import InputError
from edgedistill.recipe.file import read_recipe
from edgedistill.recipe.schema import Recipe, Source
from edgedistill.sources import registry, text
from edgedistill.sources.outputs import Network, infer
from tests.helpers import miniature

NAME = "tiny-pair"
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights file of a pair that open_clip's registry now has."""
    open_clip = pytest.importorskip("open_clip")
    import torch

    folder = tmp_path_factory.mktemp("pair")
    (folder / f"{NAME}.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = open_clip.create_model(NAME)
    torch.save(net.state_dict(), folder / "pair.pt")
    return folder / "pair.pt"


def load(weights: Path, **options: Any) -> Network:
    section = Source.model_validate({"name": "words", "kind": "text", "model": NAME, "file": str(weights), **options})
    return registry.load(section, weights.parent)


def images(n: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)


def test_probabilities_are_those_of_the_class_names(weights: Path) -> None:
    names = ("cat", "dog", "tree")
    features_ND, probs_NK = infer(load(weights, classes=names), images())
    assert probs_NK is not None and probs_NK.shape == (4, 3) and features_ND.shape == (4, 16 + 3)
    assert np.allclose(features_ND[:, 16:], probs_NK) and np.allclose(np.linalg.norm(features_ND[:, :16], axis=1), 1.0)
    _, swapped_NK = infer(load(weights, classes=names[::-1]), images())
    assert swapped_NK is not None and np.allclose(probs_NK, swapped_NK[:, ::-1], atol=1e-5)


def test_prompts_are_averaged(weights: Path) -> None:
    """The class of two prompts is the mean of their embeddings, of unit length (the arithmetic is done here)."""
    import open_clip
    import torch

    net, tokenizer = open_clip.create_model(NAME), open_clip.get_tokenizer(NAME)
    net.load_state_dict(torch.load(weights, weights_only=True))
    prompts, names = ("a {}.", "many of {}."), ("red_cat", "dog")
    with torch.inference_mode():
        tokens = [tokenizer([prompt.format(name.replace("_", " ")) for prompt in prompts]) for name in names]
        texts = [net.encode_text(rows, normalize=True) for rows in tokens]
    means_KD = torch.stack([rows.mean(dim=0) / rows.mean(dim=0).norm() for rows in texts]).numpy()
    features_ND, probs_NK = infer(load(weights, classes=names, prompts=prompts), images())
    logits_NK = float(net.logit_scale.detach().exp()) * features_ND[:, :16] @ means_KD.T
    expected_NK = np.exp(logits_NK) / np.exp(logits_NK).sum(axis=1, keepdims=True)
    assert probs_NK is not None and np.allclose(probs_NK, expected_NK, atol=1e-4)


def test_names_and_prompts_enter_the_hash_of_its_outputs(weights: Path) -> None:
    first, other = load(weights, classes=("cat", "dog")), load(weights, classes=("cat", "log"))
    prompted = load(weights, classes=("cat", "dog"), prompts=("a {}",))
    assert len({first.sha256, other.sha256, prompted.sha256}) == 3
    assert first.sha256 == load(weights, classes=("cat", "dog")).sha256


@pytest.mark.parametrize(
    ("name", "words"),
    [("001.Black_footed_Albatross", "Black footed Albatross"), ("7", "7"), ("tabby_cat", "tabby cat"), ("3-D", "3-D")],
)
def test_names_are_made_readable(name: str, words: str) -> None:
    assert text.readable(name) == words


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"prompts": ["a photo"], "classes": ["a", "b"]}, "do not say where the name goes"),
        ({"classes": []}, "has no class names"),
        ({"classes": ["a", "b"], "pretrained": "openai"}, "either `pretrained` or `file`"),
        ({"classes": ["a", "b"], "file": "none.pt"}, "is not a file"),
        ({"classes": ["a", "b"], "model": "tiny-pear"}, "did you mean tiny-pair"),
    ],
)
def test_what_does_not_fit_is_refused(weights: Path, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        load(weights, **options)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(text, "is_installed", lambda: False)
    with pytest.raises(InputError, match=r'pip install "edgedistill\[clip\]"'):
        registry.has_classes(Source.model_validate({"name": "words", "kind": "text", "model": "ViT-B-32"}), tmp_path)


def test_run_takes_the_names_of_its_classes(weights: Path, tmp_path: Path) -> None:
    project = miniature.write(tmp_path)
    source = f"[{{name: words, kind: text, model: {NAME}, file: {weights}}}]"
    document = read_recipe(
        project.recipe, [f"sources={source}", "distill.steps=2", "search.trials=1", "search.steps=1"]
    )
    recipe: Recipe = load_recipe(document)
    context = session.train(document, recipe, project.runs)
    assert context.recipe.sources[0].options["classes"] == list(context.splits.classes)
    assert context.weights.sources[0].name == "words"
    recorded, _ = context.run.recipe()
    assert recorded.sources == context.recipe.sources
