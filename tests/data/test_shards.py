"""Shards: reading, cached outputs, and the order of their images in a stream."""

from __future__ import annotations

import functools
import gc
import http.server
import io
import itertools
import subprocess
import sys
import tarfile
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edgedistill.data import shards
from edgedistill.data.images import View
from edgedistill.data.listing import RULES, hash_lines
from edgedistill.distill.stream import LabeledShard, Stream
from edgedistill.errors import EdgeDistillError, InputError
from edgedistill.recipe.data_section import Unlabeled
from edgedistill.run.files import read_json
from edgedistill.sources.outputs import Network, SourceOutputs
from edgedistill.sources.shard_outputs import label_shard
from tests.helpers import tars

PX = 8
VIEW = View(px=PX, fit="crop")


def encoded(image_number: int) -> bytes:
    """Return a PNG whose pixels encode its number: red holds the hundreds, green the remainder."""
    out = io.BytesIO()
    Image.new("RGB", (12, 12), (image_number // 100, image_number % 100, 7)).save(out, "png")
    return out.getvalue()


def write_shard(folder: Path, index: int, count: int) -> str:
    """Write a shard of images numbered from 100 * index, each with a caption file."""
    samples = {
        f"{index}-{i:02d}.{kind}": content
        for i in range(count)
        for kind, content in (("png", encoded(100 * index + i)), ("txt", b"a caption"))
    }
    return tars.write(folder / f"{index:02d}.tar", samples)


def number(square: np.ndarray) -> int:
    return int(square[0, 0, 0]) * 100 + int(square[0, 0, 1])


def net(name: str, record_batch: Callable[[int], object] = lambda images: None) -> Network:
    """A source whose features are the mean color and whose probabilities are 1/2; `record_batch` gets batch sizes."""

    def forward(images_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        record_batch(len(images_BCHW))
        return images_BCHW.mean(dim=(2, 3)), torch.ones(len(images_BCHW), 2) / 2

    return Network(forward=forward, input_px=PX, mean=(0.0,) * 3, std=(1.0,) * 3, sha256=name)


def test_addresses_are_expanded_and_checked(tmp_path: Path) -> None:
    for index in range(3):
        write_shard(tmp_path, index, 1)
    expand = functools.partial(shards.addresses, base=tmp_path)
    assert [Path(address).name for address in expand(Unlabeled(kind="wds", urls="{00..02}.tar"))] == [
        "00.tar",
        "01.tar",
        "02.tar",
    ]
    far = "https://example.org/a-{0..1}.tar?key=1"
    assert expand(Unlabeled(kind="wds", urls=(far, "00.tar")))[:2] == [
        far.replace("{0..1}", str(index)) for index in (0, 1)
    ]
    for urls, message in (
        ("{00..03}.tar", "03.tar: No such file"),
        (("00.tar", "0{0..1}.tar"), "named twice"),
        ((), "names no shard"),
        ("a{0..1.tar", "close every brace"),
        ("pipe:touch x", "pipe is not a supported kind of address"),
        ("s3://a/b.tar", "s3 is not a supported kind"),
    ):
        with pytest.raises(InputError, match=message):
            expand(Unlabeled(kind="wds", urls=urls))


def test_fingerprint_follows_the_files(tmp_path: Path) -> None:
    write_shard(tmp_path, 0, 2)
    section = Unlabeled(kind="wds", urls="00.tar")
    before = shards.fingerprint(section, tmp_path)
    assert before == shards.fingerprint(section.model_copy(update={"mixed": 7}), tmp_path)
    write_shard(tmp_path, 0, 3)
    assert shards.fingerprint(section, tmp_path) != before


def test_samples_are_read_in_order(tmp_path: Path) -> None:
    url = tars.write(
        tmp_path / "odd name #1?.tar", {"b.v2.PNG": encoded(1), "b.v2.json": b"{}", "a.txt": b"x", "c.png": b"no"}
    )
    samples = list(shards.squares(url, VIEW))
    assert [(index, name) for index, name, _ in samples] == [(0, "b"), (1, "a"), (2, "c")]
    assert samples[0][2] is not None and samples[0][2].shape == (PX, PX, 3) and number(samples[0][2]) == 1
    assert samples[1][2] is None and samples[2][2] is None  # no image, and a broken one
    assert [index for index, _, _ in shards.squares(url, VIEW, {2})] == [2]


def test_images_named_with_dots_are_refused_as_one_sample(tmp_path: Path) -> None:
    names = ["day.01.PNG", "day.01.txt", "day.02.PNG", "day.02.txt"]
    url = tars.write(tmp_path / "a.tar", {name: encoded(1) for name in names})
    message = r"a\.tar: day\.01\.PNG and day\.02\.PNG are two images of one sample: .* up to the first dot .*; rename"
    for read in (shards.samples, lambda url: shards.squares(url, VIEW)):
        with pytest.raises(InputError, match=message):
            list(read(url))
    both = tars.write(tmp_path / "b.tar", {"0.png": encoded(1), "1.png": encoded(1), "1.jpg": encoded(2)})
    with pytest.raises(InputError, match=r"b\.tar: 1\.png and 1\.jpg are two images .*; keep one image a sample"):
        list(shards.samples(both))


def test_image_of_a_sample_is_not_its_mask(tmp_path: Path) -> None:
    members = {"0.mask.png": encoded(9), "0.png": encoded(1), "1.JPG": encoded(2), "1.depth.png": encoded(9)}
    url = tars.write(tmp_path / "a.tar", {**members, "2.photo.png": encoded(3), "2.json": b"{}"})
    assert [number(square) for _, _, square in shards.squares(url, VIEW) if square is not None] == [1, 2, 3]


def test_cache_folder_of_a_shard_stays(tmp_path: Path) -> None:
    url = write_shard(tmp_path, 0, 2)
    key = [RULES, [url, Path(url).stat().st_size, Path(url).stat().st_mtime_ns], PX, "crop", None]
    assert shards.open_shard(url, VIEW, tmp_path / "cache")[0].folder.name == hash_lines(key)[:32]


@pytest.mark.parametrize("suffix", ["gif", "jfif", "tga", "jp2"])
def test_image_of_a_sample_may_have_any_listed_suffix(tmp_path: Path, suffix: str) -> None:
    url = tars.write(tmp_path / "a.tar", {f"0.{suffix}": encoded(1), "0.txt": b"a caption", "0.pfm": b"depth"})
    assert [number(square) for _, _, square in shards.squares(url, VIEW) if square is not None] == [1]


def test_archive_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"not a tar file at all" * 100)
    with pytest.raises(EdgeDistillError, match=r"a.tar: cannot be read \(.+\); copy it anew, or take it out"):
        list(shards.samples(str(tmp_path / "a.tar")))
    with pytest.raises(InputError, match="holds no images"):
        label_shard(tars.write(tmp_path / "b.tar", {"a.txt": b"x"}), VIEW, {}, tmp_path)
    few = {f"{index}.png": encoded(index) if index else b"broken" for index in range(50)}
    with pytest.raises(InputError, match="1 of 50 samples are no images: 0"):
        label_shard(tars.write(tmp_path / "c.tar", few), VIEW, {}, tmp_path)


def test_each_source_labels_a_shard_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, batch_sizes = write_shard(tmp_path, 1, 30), []
    nets = {name: net(name, batch_sizes.append) for name in ("first", "second")}
    shard, outputs = label_shard(url, VIEW, nets, tmp_path / "cache")
    assert (shard.count, shard.corrupt, len(shard.hashes)) == (30, (), 30) and sum(batch_sizes) == 60
    expected = [[1 / 255, i / 255, 7 / 255] for i in range(30)]
    np.testing.assert_allclose(outputs["second"].features_ND, expected, rtol=1e-5)
    monkeypatch.setattr(shards, "squares", lambda *arguments: pytest.fail("read again"))
    cached_shard, cached_outputs = label_shard(url, VIEW, nets, tmp_path / "cache")
    assert cached_shard == shard and sum(batch_sizes) == 60
    np.testing.assert_array_equal(cached_outputs["first"].features_ND, outputs["first"].features_ND)


def test_killed_pass_resumes_within_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgedistill.sources.outputs.CHUNK", 8)
    url, batch_sizes = write_shard(tmp_path, 0, 30), []

    def dies(images: int) -> None:
        batch_sizes.append(images)
        if len(batch_sizes) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        label_shard(url, VIEW, {"first": net("first", dies)}, tmp_path / "cache")
    assert batch_sizes == [8, 8, 8]
    _, outputs = label_shard(url, VIEW, {"first": net("first", batch_sizes.append)}, tmp_path / "cache")
    assert batch_sizes[3:] == [8, 6]  # the two finished chunks are not computed again
    np.testing.assert_allclose(outputs["first"].features_ND[:, 1], np.arange(30) / 255, rtol=1e-5)


def test_repeated_images_are_left_out(tmp_path: Path) -> None:
    urls = [
        tars.write(tmp_path / f"{index}.tar", {f"{name}.png": encoded(i) for name, i in enumerate(image_numbers)})
        for index, image_numbers in enumerate(([1, 2, 3], [3, 4, 4, 5]))
    ]
    labeled = [label_shard(url, VIEW, {}, tmp_path / "cache")[0] for url in urls]
    rows = shards.fresh_rows(labeled, labeled[0].hashes[1:2])  # image 2 is in test
    assert [shard_rows.tolist() for shard_rows in rows] == [[0, 2], [1, 3]]


@pytest.fixture
def parts(tmp_path: Path) -> tuple[LabeledShard, ...]:
    """Five shards of 7 to 11 images; the probabilities of the only source encode an image's number."""
    labeled_shards = []
    for index in range(5):
        shard, _ = label_shard(write_shard(tmp_path, index, 7 + index), VIEW, {}, tmp_path / "cache")
        numbers = 100 * index + np.arange(7 + index, dtype=np.float32)
        outputs = SourceOutputs(folder=tmp_path / f"outputs{index}")
        outputs.folder.mkdir()
        np.save(outputs.folder / "features.npy", numbers[:, None] * np.ones(3))
        np.save(outputs.folder / "probs.npy", np.stack([numbers, -numbers], axis=1))
        rows = np.arange(1, 7 + index)  # the first image of each shard is left out
        labeled_shards.append(LabeledShard(shard=shard, rows=rows, outputs={"one": outputs}))
    return tuple(labeled_shards)


def make_stream(parts: tuple[LabeledShard, ...], **changed: Any) -> Stream:
    def teacher(features: Mapping[str, Any]) -> Any:
        return features["one"][:, :1]

    return Stream(
        **{
            "shards": parts,
            "view": VIEW,
            "px": 4,
            "seed": 3,
            "mixed": 15,
            "sources": ("one",),
            "teacher": teacher,
            **changed,
        }
    )


def draw_numbers(stream: Stream, steps: range, count: int, own: slice | None = None) -> list[list[int]]:
    """Return the numbers of each step's images, and check that pixels, teacher and source agree on them."""
    numbers_of_steps = []
    for step in steps:
        batch = stream.draw(step, count, own)
        numbers = [number(square) for square in batch.images_UHWC]
        assert batch.images_UHWC.shape[1:] == (4, 4, 3) and batch.teacher_UC is not None
        assert batch.source_probs["one"][:, 0].tolist() == batch.teacher_UC[:, 0].tolist() == numbers
        numbers_of_steps.append(numbers)
    return numbers_of_steps


def flat(parts: Iterable[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(parts))


def test_epoch_holds_every_image_once(parts: tuple[LabeledShard, ...]) -> None:
    stream = make_stream(parts)
    assert len(stream) == 40
    first, second = (flat(draw_numbers(stream, steps, 8)) for steps in (range(5), range(5, 10)))
    everything = sorted(100 * index + i for index in range(5) for i in range(1, 7 + index))
    assert sorted(first) == sorted(second) == everything and first != second
    # shards are mixed, not read one after the other
    assert len({image_number // 100 for image_number in first[:8]}) > 1
    assert flat(draw_numbers(make_stream(parts, seed=4), range(5), 8)) != first


def test_batch_depends_only_on_step_number(parts: tuple[LabeledShard, ...]) -> None:
    # 9 does not divide 40: steps straddle windows and epochs
    all_steps = draw_numbers(make_stream(parts), range(12), 9)
    assert draw_numbers(make_stream(parts), range(7, 12), 9) == all_steps[7:]
    assert draw_numbers(make_stream(parts), range(3, -1, -1), 9) == all_steps[3::-1]


def test_processes_share_the_batch_of_a_step(parts: tuple[LabeledShard, ...]) -> None:
    all_steps = draw_numbers(make_stream(parts), range(8), 12)
    shares = [draw_numbers(make_stream(parts), range(8), 12, own) for own in (slice(0, 4), slice(4, 8), slice(8, 12))]
    assert [flat(shares_of_step) for shares_of_step in zip(*shares, strict=True)] == all_steps


def test_share_reads_only_its_own_images(parts: tuple[LabeledShard, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    def counted(url: str, view: View, numbers: frozenset[int]) -> Iterator[Any]:
        counts.append(len(numbers))
        return shards.squares(url, view, numbers)

    monkeypatch.setattr("edgedistill.distill.stream.squares", counted)
    stream = make_stream(parts, mixed=1000)
    stream.draw(0, 10, slice(0, 2))
    for window in stream.batches_ahead.values():
        window.result()  # the next epoch is being read
    assert sum(counts) == 2 * 8  # a fifth of each epoch, not all of it


def test_two_threads_draw_from_one_stream(parts: tuple[LabeledShard, ...]) -> None:
    """As after a pruned candidate, whose batches are gathered until its thread notices."""
    expected = [flat(draw_numbers(make_stream(parts), steps, 8)) for steps in (range(40), range(39, -1, -1))]
    shared = make_stream(parts)
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda steps: flat(draw_numbers(shared, steps, 8)), (range(40), range(39, -1, -1))))
    assert both == expected


def test_changed_shard_is_reported_and_labeled_again(parts: tuple[LabeledShard, ...], tmp_path: Path) -> None:
    section = Unlabeled(kind="wds", urls=str(tmp_path / "{00..01}.tar"))
    cache = parts[0].shard.folder.parents[1]
    assert shards.changes(section, tmp_path, cache) == ""
    write_shard(tmp_path, 0, 3)
    with pytest.raises(EdgeDistillError, match=r"00\.tar: 4 of its images are not those that were labeled; run"):
        draw_numbers(make_stream(parts), range(5), 8)
    assert not (parts[0].shard.folder / "shard.json").exists()  # labels are discarded
    once = shards.changes(section, tmp_path, cache)
    assert once, "what has read the former images has another key, also where the address is the same"
    assert shards.changes(section.model_copy(update={"urls": str(tmp_path / "01.tar")}), tmp_path, cache) == ""
    shards.forget(parts[0].shard)
    assert shards.changes(section, tmp_path, cache) not in ("", once)


def test_replaced_images_are_detected(parts: tuple[LabeledShard, ...], tmp_path: Path) -> None:
    tars.write(tmp_path / "00.tar", {f"{index}.png": encoded(900 + index) for index in range(7)})
    with pytest.raises(EdgeDistillError, match=r"00\.tar: 6 of its images are not those that were labeled"):
        draw_numbers(make_stream(parts), range(5), 8)


def test_stream_offers_a_sample_for_batch_statistics(parts: tuple[LabeledShard, ...]) -> None:
    assert make_stream(parts).sample.shape[1:] == (4, 4, 3) and 15 <= len(make_stream(parts).sample) <= 40


def test_shards_are_read_by_http(tmp_path: Path) -> None:
    write_shard(tmp_path, 2, 5)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        near = f"http://127.0.0.1:{server.server_address[1]}"
        shard, outputs = label_shard(f"{near}/02.tar", VIEW, {"one": net("one")}, tmp_path / "cache")
        assert shard.count == 5 and len(outputs["one"].features_ND) == 5
        with pytest.raises(EdgeDistillError, match=r"missing\.tar: cannot be read"):
            list(shards.samples(f"{near}/missing.tar"))
        server.shutdown()
    facts = read_json(shard.folder / "shard.json")
    assert facts["url"] == f"{near}/02.tar"


def test_many_shards_keep_few_files_open(tmp_path: Path) -> None:
    """The outputs on a thousand shards must not keep two thousand files open."""
    labeled = [
        label_shard(write_shard(tmp_path, index, 2), VIEW, {"one": net("one")}, tmp_path / "cache")
        for index in range(12)
    ]
    opened = [Path(descriptor).resolve() for descriptor in Path("/proc/self/fd").iterdir() if descriptor.exists()]
    assert len(labeled) == 12 and not [path for path in opened if tmp_path in path.parents]
    assert len(labeled[3][1]["one"].features_ND) == 2


def test_deleted_stream_frees_its_images(parts: tuple[LabeledShard, ...]) -> None:
    stream = make_stream(parts)
    stream.draw(0, 8)
    for window in stream.batches_ahead.values():
        window.result()  # a pending window still references the stream
    stream._read_lock.acquire()
    alive = weakref.ref(stream)
    del stream
    gc.collect()
    assert alive() is None


def test_process_ends_despite_unresponsive_address(tmp_path: Path) -> None:
    """The window after the last is read ahead, and the process does not wait for it at its end."""
    body = """
import threading, time
from types import SimpleNamespace
import numpy as np
from edgedistill.distill import stream
requested = threading.Event()
stream.squares = lambda *arguments: requested.set() or time.sleep(600)
shard = SimpleNamespace(sample_numbers=np.zeros(1, int), hashes=np.zeros(1, "S4"), url="")
part = SimpleNamespace(shard=shard, rows=np.zeros(1, int), outputs={})
images = stream.Stream(shards=(part,), view=None, px=4, seed=0, mixed=1)
images._read_async(stream.Window(begin=0, shard_indices=np.zeros(1, int), rows=np.zeros(1, int)), np.zeros(1, int))
assert requested.wait(30)
print("done")
"""
    process = subprocess.run([sys.executable, "-c", body], capture_output=True, text=True, timeout=60, check=False)
    assert process.returncode == 0 and process.stdout == "done\n", process.stderr


def test_first_sample_must_be_an_image_and_may_have_more_than_8_bits(tmp_path: Path) -> None:
    deep = io.BytesIO()
    Image.fromarray(np.full((8, 8), 4000, dtype=np.uint16)).save(deep, "PNG")
    for name, content in (("deep", deep.getvalue()), ("broken", b"no picture")):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            member = tarfile.TarInfo("0.png")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    shards.require_image(str(tmp_path / "deep.tar"), View(px=8, fit="crop"))
    with pytest.raises(InputError, match=r"broken.tar: 0 is no image \(is not a picture.*; name shards with jpg"):
        shards.require_image(str(tmp_path / "broken.tar"), View(px=8, fit="crop"))
