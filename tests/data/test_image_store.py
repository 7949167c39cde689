"""The image cache: images are decoded once and in order, writes are atomic, and undecodable images are named."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgedistill.data import image_store, images
from edgedistill.data.images import View
from edgedistill.data.limits import Decoder
from edgedistill.data.listing import Items
from edgedistill.errors import EdgeDistillError, InputError
from tests.helpers.paths import ROOT
from tests.helpers.trees import memory_items, noise


def test_images_are_mapped_in_order_and_hashed(tmp_path: Path) -> None:
    built = image_store.build(memory_items(600), tmp_path / "s", View(px=8, fit="squash"), data_range=None, desc="")
    assert isinstance(built.images_NHWC, np.memmap) and not built.images_NHWC.flags.writeable
    assert built.images_NHWC.shape == (600, 8, 8, 3)
    for row in (0, 255, 256, 599):
        expected = images.to_square(noise(str(row)), View(px=8, fit="squash"))
        np.testing.assert_array_equal(built.images_NHWC[row], expected)
        assert built.hashes[row].decode() == hashlib.sha256(expected.tobytes()).hexdigest()
    np.testing.assert_array_equal(built.kept_rows, np.arange(600))


def test_second_build_decodes_nothing(tmp_path: Path) -> None:
    items = memory_items(5)

    def refuse(row: int) -> Image.Image:
        raise AssertionError("an image was opened again")

    first = image_store.build(items, tmp_path / "s", View(px=8, fit="crop"), data_range=None, desc="")
    assert (
        image_store.build(replace(items, load=refuse), tmp_path / "s", View(px=8, fit="crop"), data_range=None, desc="")
        == first
    )


def test_few_corrupt_images_are_left_out_and_named(tmp_path: Path) -> None:
    built = image_store.build(
        memory_items(200, frozenset({7, 150})), tmp_path / "s", View(px=8, fit="crop"), data_range=None, desc=""
    )
    assert built.n == 198 and built.corrupt == ("0007", "0150")
    assert not set(built.kept_rows) & {7, 150}
    np.testing.assert_array_equal(built.images_NHWC[7], images.to_square(noise("8"), View(px=8, fit="crop")))
    facts = json.loads((tmp_path / "s/store.json").read_text())
    assert facts["corrupt"][0] == {"name": "0007", "reason": "image file is truncated (3 bytes not processed)"}


@pytest.mark.parametrize(("n", "allowed"), [(9, 0), (10, 1), (40, 3), (299, 3), (500, 5)])
def test_more_corrupt_images_than_a_few_are_refused(n: int, allowed: int, tmp_path: Path) -> None:
    """One in a hundred, or three of a small set, but not more than one in ten."""
    view = View(px=8, fit="crop")
    built = image_store.build(
        memory_items(n, frozenset(range(allowed))), tmp_path / "s", view, data_range=None, desc=""
    )
    assert len(built.corrupt) == allowed
    with pytest.raises(InputError, match=rf"more than {allowed} of {n} images cannot be decoded: 0000 \(image file"):
        image_store.build(
            memory_items(n, frozenset(range(allowed + 1))), tmp_path / "t", view, data_range=None, desc=""
        )
    assert not (tmp_path / "t").exists()


def test_any_share_may_be_corrupt_where_that_is_asked_for(tmp_path: Path) -> None:
    items, view = memory_items(20, frozenset(range(0, 20, 2))), View(px=8, fit="crop")
    built = image_store.build(items, tmp_path / "s", view, data_range=None, desc="", max_corrupt=1.0)
    assert built.n == 10
    assert built.reasons == dict.fromkeys(built.corrupt, "image file is truncated (3 bytes not processed)")


def test_broken_files_are_distinguished_from_valid_ones(tmp_path: Path) -> None:
    noise("a", px=64).save(tmp_path / "a.png")
    png = (tmp_path / "a.png").read_bytes()
    broken = {"cut.png": png[:2000], "text.jpg": b"hello", "empty.png": b"", "chunk.png": png[:20] + png[30:]}
    names = ["a.png", *broken]
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
    items = Items(names=names, labels_N=np.zeros(5, dtype=np.int64), load=lambda row: Image.open(tmp_path / names[row]))
    decoder = Decoder(items, View(px=8, fit="crop"), None)
    decoded = [decoder(row) for row in range(5)]
    assert [square is not None for square, _ in decoded] == [True, False, False, False, False]
    assert all(reason for _, reason in decoded[1:])


def test_smaller_size_is_computed_once_from_stored_squares(tmp_path: Path) -> None:
    built = image_store.build(memory_items(3), tmp_path / "s", View(px=10, fit="crop"), data_range=None, desc="")
    small = built.resized(6)
    assert isinstance(small, np.memmap) and small.shape == (3, 6, 6, 3)
    np.testing.assert_array_equal(small[2], images.resize(np.asarray(built.images_NHWC[2]), 6))
    modified_ns = (tmp_path / "s/images.6.u8").stat().st_mtime_ns
    built.resized(6)
    assert (tmp_path / "s/images.6.u8").stat().st_mtime_ns == modified_ns
    assert built.resized(10).filename == built.images_NHWC.filename


def request_size(built: image_store.ImageStore, start: Any) -> None:
    start.wait()
    assert built.resized(9).shape == (300, 9, 9, 3)


def test_concurrent_requests_for_a_size_succeed(tmp_path: Path) -> None:
    built = image_store.build(memory_items(300), tmp_path / "s", View(px=16, fit="crop"), data_range=None, desc="")
    context = multiprocessing.get_context("spawn")
    start = context.Event()
    workers = [context.Process(target=request_size, args=(built, start)) for _ in range(2)]
    for worker in workers:
        worker.start()
    start.set()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert not list((tmp_path / "s").glob("*.tmp"))


def test_pickled_store_excludes_pixels(tmp_path: Path) -> None:
    built = image_store.build(memory_items(100), tmp_path / "s", View(px=32, fit="crop"), data_range=None, desc="")
    assert len(pickle.dumps(built)) < 1000 < built.images_NHWC.nbytes


KILLED = """
import sys, time
from pathlib import Path
from edgedistill.data import image_store as store
from edgedistill.data.images import View
from tests.helpers.trees import memory_items
items = memory_items(2000)
def slow(row):
    time.sleep(0.002)
    return items.load(row)
print("building", flush=True)
slowly = type(items)(names=items.names, labels_N=items.labels_N, load=slow)
store.build(slowly, Path(sys.argv[1]), View(px=8, fit="crop"), data_range=None, desc="")
"""


def test_killed_build_is_not_taken_for_finished(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 60
        while not any(path.stat().st_size for path in tmp_path.glob(".s.*.tmp/images.8.u8")):
            assert process.poll() is None and time.monotonic() < deadline, "the build ended before it could be killed"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert list(tmp_path.glob(".s.*.tmp")), "the kill left no half-built folder"
    assert image_store.open_store(folder) is None
    assert image_store.build(memory_items(4), folder, View(px=8, fit="crop"), data_range=None, desc="").n == 4
    assert not list(tmp_path.glob(".s.*.tmp"))


def test_truncated_pixels_are_rebuilt(tmp_path: Path) -> None:
    built = image_store.build(memory_items(4), tmp_path / "s", View(px=8, fit="crop"), data_range=None, desc="")
    os.truncate(tmp_path / "s/images.8.u8", 100)
    assert image_store.open_store(tmp_path / "s") is None
    again = image_store.build(memory_items(4), tmp_path / "s", View(px=8, fit="crop"), data_range=None, desc="")
    assert again == built and again.images_NHWC.shape == (4, 8, 8, 3)


def test_full_disk_raises_one_line_error_and_keeps_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = image_store.build(memory_items(4), tmp_path / "old", View(px=8, fit="crop"), data_range=None, desc="")
    before = {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EdgeDistillError, match=r"No space left on device\); make room"):
        image_store.build(memory_items(4), tmp_path / "new", View(px=8, fit="crop"), data_range=None, desc="")
    with pytest.raises(EdgeDistillError, match=r"No space left on device\); make room"):
        built.resized(4)
    assert {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [".new.lock", ".old.lock", "old"]


def test_empty_set_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there are no images"):
        image_store.build(memory_items(0), tmp_path / "s", View(px=8, fit="crop"), data_range=None, desc="decode train")
