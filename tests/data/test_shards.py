"""Shards: what is read, what is kept of them, and in which order their images come."""

from __future__ import annotations

import functools
import gc
import http.server
import io
import itertools
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edgedistill.data import shards
from edgedistill.data.shards import View
from edgedistill.distill.stream import LabeledShard, Stream
from edgedistill.errors import EdgeDistillError, InputError
from edgedistill.recipe.schema import Unlabeled
from edgedistill.run.files import read_json
from edgedistill.sources.outputs import Network, SourceOutputs
from edgedistill.sources.shard_outputs import label_shard
from tests.helpers import tars

PX = 8
VIEW = View(px=PX, fit="crop")


def encoded(number: int) -> bytes:
    """A PNG whose every pixel tells its number: red 100 * shard's hundreds, green the rest."""
    out = io.BytesIO()
    Image.new("RGB", (12, 12), (number // 100, number % 100, 7)).save(out, "png")
    return out.getvalue()


def shard(folder: Path, at: int, count: int) -> str:
    """Images numbered 100 * at and on, each with a caption beside it."""
    samples = {
        f"{at}-{i:02d}.{kind}": data
        for i in range(count)
        for kind, data in (("png", encoded(100 * at + i)), ("txt", b"a caption"))
    }
    return tars.write(folder / f"{at:02d}.tar", samples)


def number(square: np.ndarray) -> int:
    return int(square[0, 0, 0]) * 100 + int(square[0, 0, 1])


def net(name: str, asked: Callable[[int], object] = lambda images: None) -> Network:
    """A source whose features are its input's mean colour and whose one class is sure; tells how many it is asked."""

    def forward(images_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        asked(len(images_BCHW))
        return images_BCHW.mean(dim=(2, 3)), torch.ones(len(images_BCHW), 2) / 2

    return Network(forward=forward, input_px=PX, mean=(0.0,) * 3, std=(1.0,) * 3, sha256=name)


def test_addresses(tmp_path: Path) -> None:
    for at in range(3):
        shard(tmp_path, at, 1)
    expand = functools.partial(shards.addresses, base=tmp_path)
    assert [Path(one).name for one in expand(Unlabeled(kind="wds", urls="{00..02}.tar"))] == [
        "00.tar",
        "01.tar",
        "02.tar",
    ]
    far = "https://example.org/a-{0..1}.tar?key=1"
    assert expand(Unlabeled(kind="wds", urls=(far, "00.tar")))[:2] == [far.replace("{0..1}", str(at)) for at in (0, 1)]
    for urls, told in (
        ("{00..03}.tar", "03.tar: No such file"),
        (("00.tar", "0{0..1}.tar"), "named twice"),
        ((), "names no shard"),
        ("a{0..1.tar", "close every brace"),
        ("pipe:touch x", "pipe is no kind of address"),
        ("s3://a/b.tar", "s3 is no kind"),
    ):
        with pytest.raises(InputError, match=told):
            expand(Unlabeled(kind="wds", urls=urls))


def test_the_fingerprint_follows_the_files(tmp_path: Path) -> None:
    shard(tmp_path, 0, 2)
    section = Unlabeled(kind="wds", urls="00.tar")
    before = shards.fingerprint(section, tmp_path)
    assert before == shards.fingerprint(section.model_copy(update={"mixed": 7}), tmp_path)
    shard(tmp_path, 0, 3)
    assert shards.fingerprint(section, tmp_path) != before


def test_samples_are_read_in_their_order(tmp_path: Path) -> None:
    url = tars.write(
        tmp_path / "odd name #1?.tar", {"b.v2.PNG": encoded(1), "b.v2.json": b"{}", "a.txt": b"x", "c.png": b"no"}
    )
    found = list(shards.squares(url, VIEW))
    assert [(at, name) for at, name, _ in found] == [(0, "b"), (1, "a"), (2, "c")]
    assert found[0][2] is not None and found[0][2].shape == (PX, PX, 3) and number(found[0][2]) == 1
    assert found[1][2] is None and found[2][2] is None  # no image, and a broken one
    assert [at for at, _, _ in shards.squares(url, VIEW, {2})] == [2]


def test_what_is_no_shard(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"not a tar file at all" * 100)
    with pytest.raises(EdgeDistillError, match=r"a.tar: cannot be read \(.+\); what was done is kept"):
        list(shards.samples(str(tmp_path / "a.tar")))
    with pytest.raises(InputError, match="holds no images"):
        label_shard(tars.write(tmp_path / "b.tar", {"a.txt": b"x"}), VIEW, {}, tmp_path)
    few = {f"{at}.png": encoded(at) if at else b"broken" for at in range(50)}
    with pytest.raises(InputError, match="1 of 50 samples are no images: 0"):
        label_shard(tars.write(tmp_path / "c.tar", few), VIEW, {}, tmp_path)


def test_each_source_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, asked = shard(tmp_path, 1, 30), []
    nets = {name: net(name, asked.append) for name in ("first", "second")}
    found, said = label_shard(url, VIEW, nets, tmp_path / "cache")
    assert (found.count, found.corrupt, len(found.hashes)) == (30, (), 30) and sum(asked) == 60
    expected = [[1 / 255, i / 255, 7 / 255] for i in range(30)]
    np.testing.assert_allclose(said["second"].features_ND, expected, rtol=1e-5)
    monkeypatch.setattr(shards, "squares", lambda *given: pytest.fail("read again"))
    again, told = label_shard(url, VIEW, nets, tmp_path / "cache")
    assert again == found and sum(asked) == 60
    np.testing.assert_array_equal(told["first"].features_ND, said["first"].features_ND)


def test_a_killed_pass_goes_on_within_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgedistill.sources.outputs.CHUNK", 8)
    url, asked = shard(tmp_path, 0, 30), []

    def dies(images: int) -> None:
        asked.append(images)
        if len(asked) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        label_shard(url, VIEW, {"first": net("first", dies)}, tmp_path / "cache")
    assert asked == [8, 8, 8]
    _, said = label_shard(url, VIEW, {"first": net("first", asked.append)}, tmp_path / "cache")
    assert asked[3:] == [8, 6]  # the two chunks that were done are not asked again
    np.testing.assert_allclose(said["first"].features_ND[:, 1], np.arange(30) / 255, rtol=1e-5)


def test_an_image_that_is_known_takes_no_part(tmp_path: Path) -> None:
    urls = [
        tars.write(tmp_path / f"{at}.tar", {f"{name}.png": encoded(i) for name, i in enumerate(given)})
        for at, given in enumerate(([1, 2, 3], [3, 4, 4, 5]))
    ]
    found = [label_shard(url, VIEW, {}, tmp_path / "cache")[0] for url in urls]
    rows = shards.fresh_rows(found, found[0].hashes[1:2])  # image 2 stands in test
    assert [one.tolist() for one in rows] == [[0, 2], [1, 3]]


@pytest.fixture
def parts(tmp_path: Path) -> tuple[LabeledShard, ...]:
    """Five shards of 7 to 11 images; the probabilities of the one source tell an image's number."""
    made = []
    for at in range(5):
        found, _ = label_shard(shard(tmp_path, at, 7 + at), VIEW, {}, tmp_path / "cache")
        numbers = 100 * at + np.arange(7 + at, dtype=np.float32)
        said = SourceOutputs(folder=tmp_path / f"said{at}")
        said.folder.mkdir()
        np.save(said.folder / "features.npy", numbers[:, None] * np.ones(3))
        np.save(said.folder / "probs.npy", np.stack([numbers, -numbers], axis=1))
        made.append(
            LabeledShard(shard=found, rows=np.arange(1, 7 + at), outputs={"one": said})
        )  # the first of each takes no part
    return tuple(made)


def stream(parts: tuple[LabeledShard, ...], **changed: Any) -> Stream:
    def teacher(features: Mapping[str, Any]) -> Any:
        return features["one"][:, :1]

    return Stream(
        **{
            "parts": parts,
            "view": VIEW,
            "px": 4,
            "seed": 3,
            "mixed": 15,
            "sources": ("one",),
            "teacher": teacher,
            **changed,
        }
    )


def drawn(one: Stream, steps: range, count: int, own: slice | None = None) -> list[list[int]]:
    """The numbers of each step's images; all that is known of an image must tell the same number."""
    found = []
    for step in steps:
        batch = one.draw(step, count, own)
        numbers = [number(square) for square in batch.images_UHWC]
        assert batch.images_UHWC.shape[1:] == (4, 4, 3) and batch.teacher_UC is not None
        assert batch.source_probs["one"][:, 0].tolist() == batch.teacher_UC[:, 0].tolist() == numbers
        found.append(numbers)
    return found


def flat(parts: Iterable[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(parts))


def test_an_epoch_holds_every_image_once(parts: tuple[LabeledShard, ...]) -> None:
    one = stream(parts)
    assert len(one) == 40
    first, second = (flat(drawn(one, steps, 8)) for steps in (range(5), range(5, 10)))
    everything = sorted(100 * at + i for at in range(5) for i in range(1, 7 + at))
    assert sorted(first) == sorted(second) == everything and first != second
    # shards are mixed, not read one after the other
    assert len({one // 100 for one in first[:8]}) > 1
    assert flat(drawn(stream(parts, seed=4), range(5), 8)) != first


def test_a_step_follows_from_its_number_alone(parts: tuple[LabeledShard, ...]) -> None:
    whole = drawn(stream(parts), range(12), 9)  # 9 does not divide 40: steps straddle windows and epochs
    assert drawn(stream(parts), range(7, 12), 9) == whole[7:]
    assert drawn(stream(parts), range(3, -1, -1), 9) == whole[3::-1]


def test_processes_share_a_step(parts: tuple[LabeledShard, ...]) -> None:
    whole = drawn(stream(parts), range(8), 12)
    shares = [drawn(stream(parts), range(8), 12, own) for own in (slice(0, 4), slice(4, 8), slice(8, 12))]
    assert [flat(some) for some in zip(*shares, strict=True)] == whole


def test_a_share_reads_no_more_than_its_images(
    parts: tuple[LabeledShard, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: list[int] = []

    def counted(url: str, view: View, numbers: frozenset[int]) -> Iterator[Any]:
        wanted.append(len(numbers))
        return shards.squares(url, view, numbers)

    monkeypatch.setattr("edgedistill.distill.stream.squares", counted)
    one = stream(parts, mixed=1000)
    one.draw(0, 10, slice(0, 2))
    for promised in one._ready.values():
        promised.result()  # the next epoch is on its way
    assert sum(wanted) == 2 * 8  # a fifth of each, not all of it


def test_a_shard_that_changed_since(parts: tuple[LabeledShard, ...], tmp_path: Path) -> None:
    shard(tmp_path, 0, 3)
    with pytest.raises(EdgeDistillError, match=r"00\.tar: 4 of its images are not those that were labeled; run"):
        drawn(stream(parts), range(5), 8)
    assert not (parts[0].shard.folder / "shard.json").exists()  # labeled anew


def test_as_many_other_images_are_noticed(parts: tuple[LabeledShard, ...], tmp_path: Path) -> None:
    tars.write(tmp_path / "00.tar", {f"{at}.png": encoded(900 + at) for at in range(7)})
    with pytest.raises(EdgeDistillError, match=r"00\.tar: 6 of its images are not those that were labeled"):
        drawn(stream(parts), range(5), 8)


def test_a_sample_for_batch_statistics(parts: tuple[LabeledShard, ...]) -> None:
    assert stream(parts).sample.shape[1:] == (4, 4, 3) and 15 <= len(stream(parts).sample) <= 40


def test_by_http(tmp_path: Path) -> None:
    shard(tmp_path, 2, 5)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *given: Any) -> None:
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        near = f"http://127.0.0.1:{server.server_address[1]}"
        found, said = label_shard(f"{near}/02.tar", VIEW, {"one": net("one")}, tmp_path / "cache")
        assert found.count == 5 and len(said["one"].features_ND) == 5
        with pytest.raises(EdgeDistillError, match=r"missing\.tar: cannot be read"):
            list(shards.samples(f"{near}/missing.tar"))
        server.shutdown()
    facts = read_json(found.folder / "shard.json")
    assert facts["url"] == f"{near}/02.tar"


def test_many_shards_need_few_files(tmp_path: Path) -> None:
    """What sources say of a thousand shards may not hold two thousand files open."""
    held = [label_shard(shard(tmp_path, at, 2), VIEW, {"one": net("one")}, tmp_path / "cache") for at in range(12)]
    opened = [Path(one).resolve() for one in Path("/proc/self/fd").iterdir() if one.exists()]
    assert len(held) == 12 and not [one for one in opened if tmp_path in one.parents]
    assert len(held[3][1]["one"].features_ND) == 2


def test_a_stream_that_is_let_go_frees_its_images(parts: tuple[LabeledShard, ...]) -> None:
    one = stream(parts)
    one.draw(0, 8)
    for promised in one._ready.values():
        promised.result()  # what is on its way still holds it
    one._turn.acquire()
    alive = weakref.ref(one)
    del one
    gc.collect()
    assert alive() is None


def test_a_process_ends_while_an_address_does_not_answer(tmp_path: Path) -> None:
    """The window after the last is read ahead; nobody waits for it at the end."""
    body = """
import threading, time
from types import SimpleNamespace
import numpy as np
from edgedistill.distill import stream
asked = threading.Event()
stream.squares = lambda *given: asked.set() or time.sleep(600)
shard = SimpleNamespace(kept=np.zeros(1, int), hashes=np.zeros(1, "S4"), url="")
part = SimpleNamespace(shard=shard, rows=np.zeros(1, int), outputs={})
one = stream.Stream((part,), None, 4, 0, 1)
one._ahead(stream.Window(0, np.zeros(1, int), np.zeros(1, int)), np.zeros(1, int))
assert asked.wait(30)
print("done")
"""
    done = subprocess.run([sys.executable, "-c", body], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and done.stdout == "done\n", done.stderr
