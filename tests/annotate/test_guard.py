"""Whoever is not the browser that opened the printed link is answered with a 4xx, case by case."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from PIL import Image

from edgedistill.annotate.batch import Batch, batch
from edgedistill.data.label_file import read_labels
from edgedistill.errors import InputError
from edgedistill.labeling import sources
from tests.helpers.annotation import TAB, Client, photos, served

EVIL = "http://evil.example"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Batch]:
    folder = photos(tmp_path_factory.mktemp("guard") / "photos")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "PACKAGES", {})
        yield batch(folder, 10, folder.parent / "runs")


@pytest.fixture
def client(prepared: Batch) -> Iterator[Client]:
    with served(prepared) as fresh:
        yield fresh


def test_token_is_exchanged_once_for_a_strict_cookie(client: Client) -> None:
    other = Client(port=client.port, token=client.token)
    cookie = client.enter().headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    assert client.token not in cookie
    assert client.get("/").status == 200
    assert other.get(f"/?token={client.token}").status == 403, "a second browser"
    assert other.get("/state").status == 403
    assert client.get(f"/?token={client.token}").status == 200, "the same browser may open the link again"


@pytest.mark.parametrize(
    "path", ["/", "/page.js", "/page.css", "/state", "/picture?path=0-00.png", "/cluster?number=0"]
)
def test_nothing_is_served_without_the_cookie(client: Client, path: str) -> None:
    assert client.get(path).status == 403
    assert client.get(path, Cookie=f"edgedistill-{client.port}=guessed").status == 403
    assert client.get(path, Cookie=f"edgedistill-{client.port}=\u00e9").status == 403
    client.enter()
    assert client.get(path).status == 200


@pytest.mark.parametrize("path", ["/label", "/label-cluster", "/undo", "/close"])
def test_nothing_is_changed_without_the_cookie(client: Client, path: str) -> None:
    assert client.post(path, {"tab": TAB}).status == 403


@pytest.mark.parametrize("token", ["", "wrong", "%C3%A9", "a" * 43])
def test_wrong_token(client: Client, token: str) -> None:
    answer = client.get(f"/?token={token}")
    assert answer.status == 403 and "set-cookie" not in answer.headers
    assert client.get("/state?token=" + client.token).status == 403, "only the link itself exchanges it"
    assert client.enter().status == 200, "a wrong one does not use the right one up"


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example:80",
        "0.0.0.0:1",
        "evil@localhost",
        "127.0.0.1:",
        "",
    ],
)
def test_wrong_host(client: Client, host: str) -> None:
    client.enter()
    assert 400 <= client.get("/state", Host=host).status < 500
    assert 400 <= client.get(f"/?token={client.token}", Host=host).status < 500


def test_missing_host(client: Client) -> None:
    client.enter()
    assert client.get("/state", Host=None).status == 400


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "localhost:65535", "LOCALHOST:9000", "[::1]:9000"])
def test_any_port_of_this_machine_is_its_host(client: Client, host: str) -> None:
    client.enter()
    assert client.get("/state", Host=host).status == 200
    assert client.post("/undo", {"tab": TAB}, Host=host, Origin=f"http://{host}").status == 200


@pytest.mark.parametrize(
    "origin", [EVIL, "null", "http://127.0.0.1:1", "http://localhost", "https://127.0.0.1", "", None]
)
def test_wrong_origin_changes_nothing(client: Client, origin: str | None) -> None:
    client.enter()
    assert client.post("/undo", {"tab": TAB}, Origin=origin).status == 403
    if origin is not None:
        assert client.get("/state", Origin=origin).status == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_requests_of_other_pages_get_nothing(client: Client, site: str) -> None:
    """A page on another port of this machine is the same site: its requests carry the cookie."""
    client.enter()
    assert client.get("/picture?path=0-00.png", Sec_Fetch_Site=site).status == 403
    assert client.post("/undo", {"tab": TAB}, Sec_Fetch_Site=site).status == 403
    assert client.get(f"/?token={client.token}", Sec_Fetch_Site=site).status == 200, "the link may stand on any page"


@pytest.mark.parametrize(
    "path",
    [
        "../secret.png",
        "/etc/passwd",
        "0-00.png/../../secret.png",
        "labels.csv",
        ".",
        "",
        "nowhere.png",
        "0-00.png\0",
        "..\\secret.png",
    ],
)
def test_wrong_path(client: Client, prepared: Batch, path: str) -> None:
    Image.new("RGB", (8, 8)).save(prepared.root.parent / "secret.png")
    client.enter()
    assert client.get(f"/picture?path={quote(path)}").status == 404
    assert client.get(f"/picture?small&path={quote(path)}").status == 404
    assert client.label(path, "bolt").status == 404
    body = {"tab": TAB, "cluster": 0, "name": "bolt", "paths": [path]}
    assert client.post("/label-cluster", body).status == 404
    assert not prepared.answers.file.exists()


@pytest.mark.parametrize(
    "path", ["/../secret.png", "/%2e%2e/secret.png", "/answers.py", "/page.html/../app.py", "//etc/passwd"]
)
def test_no_other_file_is_served(client: Client, path: str) -> None:
    client.enter()
    assert client.get(path).status == 404


@pytest.mark.parametrize("query", ["", "number=", "number=x", "number=-1", "number=99"])
def test_wrong_cluster(client: Client, query: str) -> None:
    client.enter()
    assert client.get(f"/cluster?{query}").status == 404


def test_link_out_of_the_folder_is_refused(client: Client, prepared: Batch) -> None:
    """The picture was inside when the session began."""
    client.enter()
    Image.new("RGB", (8, 8)).save(prepared.root.parent / "secret.png")
    name = prepared.queue[0].path
    picture, kept = prepared.root / name, prepared.root.parent / "kept.png"
    picture.rename(kept)
    try:
        picture.symlink_to("../secret.png")
        assert client.get(f"/picture?path={name}").status == 403
        assert client.get(f"/picture?small&path={name}").status == 403
        picture.unlink()
        picture.symlink_to(picture.name)
        assert client.get(f"/picture?path={name}").status == 403, "a link to itself"
        picture.unlink()
        assert client.get(f"/picture?path={name}").status == 422, "it is gone"
    finally:
        picture.unlink(missing_ok=True)
        kept.rename(picture)


def test_links_out_of_the_folder_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "PACKAGES", {})
    folder = photos(tmp_path / "photos")
    (folder / "0-00.png").rename(tmp_path / "out.png")
    (folder / "0-00.png").symlink_to("../out.png")
    prepared = batch(folder, 50, tmp_path / "runs")
    assert len(prepared.queue) == 35 and "0-00.png" not in prepared.rows
    assert any("links followed: 1 picture" in note for note in prepared.notes)
    for path in folder.glob("*.png"):
        if not path.is_symlink():
            path.rename(tmp_path / path.name)
            path.symlink_to(f"../{path.name}")
    with pytest.raises(InputError, match="every picture lies outside"):
        batch(folder, 5, tmp_path / "runs")


def test_every_answer_has_the_headers(client: Client) -> None:
    client.enter()
    for answer in (
        client.get("/"),
        client.get("/nowhere"),
        client.get("/state", Host="evil.example"),
        client.post("/", {}),
    ):
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in answer.headers


def test_pictures_are_encoded_anew(client: Client, prepared: Batch) -> None:
    client.enter()
    path = prepared.root / prepared.queue[0].path
    original = path.read_bytes()
    try:
        with Image.open(path) as image:
            exif = Image.Exif()
            exif[0x010E] = "where it was taken"
            image.save(path, format="JPEG", exif=exif, comment=b"taken by whom")  # Pillow keeps comments
        with path.open("ab") as stream:
            stream.write(b"<script>alert(1)</script>")
        answer = client.get(f"/picture?path={path.name}")
    finally:
        path.write_bytes(original)
    assert answer.headers["content-type"] == "image/jpeg" and answer.status == 200
    assert b"taken" not in answer.body and b"script" not in answer.body
    with Image.open(io.BytesIO(answer.body)) as image, Image.open(path) as expected:
        assert image.format == "JPEG" and image.size == expected.size


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"{}", "text/plain", 415),
        (b"{}", None, 415),
        (b"", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"tab": 1}', "application/json", 400),
        (b'{"tab": "tab-of-a-test", "more": 1}', "application/json", 400),
        (b" " * (8 * 2**20 + 1), "application/json", 413),
    ],
)
def test_wrong_body(client: Client, body: bytes, content_type: str | None, status: int) -> None:
    client.enter()
    assert client.post("/undo", body, Content_Type=content_type).status == status


def test_full_or_unwritable_folder_is_said_and_nothing_is_lost(client: Client, prepared: Batch) -> None:
    client.enter()
    name = prepared.queue[0].path
    file = prepared.answers.file
    if os.geteuid() == 0:
        file.mkdir()  # a superuser may write everywhere, and replaces no folder
    else:
        prepared.root.chmod(0o500)
    try:
        answer = client.label(name, "bolt")
        assert answer.status >= 400 and answer.json["error"]
    finally:
        prepared.root.chmod(0o700)
        if file.is_dir():
            file.rmdir()
    assert client.label(name, "bolt").status == 200
    assert read_labels(file)[name].name == "bolt"
    assert client.post("/undo", {"tab": TAB}).status == 200
    file.unlink()
