"""The local transport, and the messages of every transport about a failed program."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from edgedistill.devices import transport as transport_module
from edgedistill.devices.transport import connect, interpreter
from edgedistill.errors import EdgeDistillError, InputError
from edgedistill.measurements import Device

LOCAL = Device(name="local")
PYTHON = interpreter(LOCAL)


def test_put_run_get_round_trip(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("3")
    lines: list[str] = []
    program = "n = int(open('in.txt').read()); open('out.txt', 'w').write(str(n * n)); print('a'); print('b')"
    with connect(LOCAL) as transport:
        transport.put([tmp_path / "in.txt"])
        process = transport.run([PYTHON, "-c", program], 60.0, lines.append)
        transport.get("out.txt", tmp_path / "back.txt")
    assert (tmp_path / "back.txt").read_text() == "9"
    assert lines == ["a", "b"]
    assert process.stdout == "a\nb\n"


def test_folder_is_in_workdir_and_removed(tmp_path: Path) -> None:
    device = Device(name="local", workdir=str(tmp_path / "new" / "work"))
    with pytest.raises(RuntimeError, match="caller"), connect(device) as transport:
        folder = transport.run([PYTHON, "-c", "import os; print(os.getcwd())"], 60.0).stdout.strip()
        assert Path(folder).parent == Path(device.workdir).resolve()
        raise RuntimeError("an error of the caller")
    assert not Path(folder).exists()


def test_tilde_in_workdir_is_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for workdir, parent in (("~/x/y", tmp_path / "home/x/y"), ("~", tmp_path / "home")):
        with connect(Device(name="local", workdir=workdir)) as transport:
            folder = transport.run([PYTHON, "-c", "import os; print(os.getcwd())"], 60.0).stdout.strip()
        assert Path(folder).parent == parent.resolve()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_home_of_unknown_user_is_one_line() -> None:
    device = Device(name="box", workdir="~nobody-of-this-name/x")
    with pytest.raises(InputError, match=r"^box: workdir ~nobody-of-this-name/x: .*; name another workdir"):
        connect(device).__enter__()


def test_failure_carries_exit_code_and_stderr() -> None:
    with connect(LOCAL) as transport, pytest.raises(EdgeDistillError) as caught:
        transport.run([PYTHON, "-c", "import sys; print('no such thing', file=sys.stderr); sys.exit(7)"], 60.0)
    assert "exited with 7: no such thing" in str(caught.value)
    assert str(caught.value).startswith("local: ")


def test_hanging_program_is_ended() -> None:
    with connect(LOCAL) as transport, pytest.raises(EdgeDistillError, match="still running after 1 s"):
        transport.run([PYTHON, "-c", "print(1, flush=True); import time; time.sleep(60)"], 1.0)


def test_large_stderr_does_not_block() -> None:
    program = "import sys; sys.stderr.write('x' * 1_000_000); print('done')"
    with connect(LOCAL) as transport:
        assert transport.run([PYTHON, "-c", program], 60.0).stdout == "done\n"


def test_missing_file_or_program_raises_one_line_error(tmp_path: Path) -> None:
    with connect(LOCAL) as transport:
        with pytest.raises(EdgeDistillError, match="fetching none: No such file"):
            transport.get("none", tmp_path / "x")
        with pytest.raises(EdgeDistillError, match="no-such-python: No such file or directory; install it there, or"):
            transport.run(["no-such-python"], 1.0)
        with pytest.raises(EdgeDistillError, match="copying none: No such file"):
            transport.put([tmp_path / "none"])


def test_altered_file_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "agent.py").write_text("open('ran', 'w')")
    with connect(Device(name="local", workdir=str(tmp_path / "work"))) as transport:
        transport.put([tmp_path / "agent.py"])
        (folder,) = (tmp_path / "work").iterdir()
        (folder / "agent.py").write_text("open('ran', 'w');")
        with pytest.raises(EdgeDistillError, match=r"agent\.py: not on the device as sent"):
            transport.run([PYTHON, "agent.py"], 60.0)
        assert not (folder / "ran").exists()


def test_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.onnx").write_bytes(bytes(1000))
    monkeypatch.setattr(transport_module, "SPARE_BYTES", 1 << 60)
    with connect(LOCAL) as transport, pytest.raises(EdgeDistillError, match=r"no space left in its work folder: .* MB"):
        transport.put([tmp_path / "model.onnx"])


def test_child_process_is_ended_with_its_parent() -> None:
    # the child keeps its parent's output open: unless both are ended, reading it takes a minute
    program = "import subprocess; subprocess.call(['sleep', '60'])"
    started = time.monotonic()
    with connect(LOCAL) as transport, pytest.raises(EdgeDistillError, match="still running after 1 s, ended"):
        transport.run([PYTHON, "-c", program], 1.0)
    assert time.monotonic() - started < 20


def test_impossible_workdir_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match="workdir"),
        connect(Device(name="local", workdir=str(tmp_path / "file" / "x"))),
    ):
        pass


def test_interpreter_follows_transport_and_device() -> None:
    assert interpreter(LOCAL) == sys.executable
    assert interpreter(Device(name="pi", transport="ssh", host="pi")) == "python3"
    assert interpreter(Device(name="pi", transport="ssh", host="pi", python="/opt/py")) == "/opt/py"
    assert os.access(PYTHON, os.X_OK)
