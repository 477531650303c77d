"""Atomic writes on bad disks, and folders that one process at a time writes in."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from parity_tests.conftest import ROOT
from repro.errors import InputError
from repro.files import LOCK_NAME, lock_folder, write_report
from weights_conversion.files import atomic_path, make_folder, write_text


def python(code: str, *, user: int | None = None, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        user=user,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **options,
    )


# --- atomic writes -----------------------------------------------------------------------------------------


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    write_text(path, "before")

    def write() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        write()
    assert path.read_text() == "before"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.txt"]


def test_what_a_library_writes_has_the_mode_of_any_other_file(tmp_path):
    with atomic_path(tmp_path / "a.safetensors") as temporary:
        save_file({"a": torch.zeros(1)}, temporary)
    with atomic_path(tmp_path / "b.txt") as temporary:
        temporary.unlink()
        os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
    (tmp_path / "plain").touch()
    assert len({path.stat().st_mode for path in tmp_path.iterdir() if not path.name.startswith(".")}) == 1


def test_no_file_takes_the_place_of_a_pipe_or_device(tmp_path):
    """As root, writing to /dev/null would otherwise remove it."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(OSError, match="device or a pipe"):
            write_text(tmp_path / name, "a")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["link", "pipe"]
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("content", [b"\x89PNG", b"[1]", b'{"name": "my application"}'])
@pytest.mark.parametrize("name", ["list.txt", "package.json"])
def test_a_report_takes_no_other_files_place(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match="is no JSON report"):
        write_report(path, {"images": 1})
    assert path.read_bytes() == content
    write_report(tmp_path / "a.json", {"images": 1})
    write_report(tmp_path / "a.json", {"images": 2})
    assert '"images": 2' in (tmp_path / "a.json").read_text()


def test_file_and_folder_are_synced_around_the_rename(tmp_path, monkeypatch):
    """In this order: the file's content, its name, the folder that holds the name."""
    steps = []
    fsync, replace = os.fsync, Path.replace

    def spy_fsync(handle):
        steps.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        fsync(handle)

    def spy_replace(self, target):
        steps.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(Path, "replace", spy_replace)
    write_text(tmp_path / "a.txt", "a")
    assert steps == ["file", "rename", "folder"]
    steps.clear()
    make_folder(tmp_path / "b" / "c")
    assert steps == ["folder", "folder"]


WRITERS = {
    "text": "open(path, 'w').write('x' * 4_000_000)",
    "torch": "import torch; torch.save(torch.zeros(1_000_000), path)",
    "safetensors": (
        "import torch; from safetensors.torch import save_file; save_file({'a': torch.zeros(1_000_000)}, path)"
    ),
    "hdf5": (
        "import h5py, numpy as np\n"
        "with h5py.File(path, 'w') as file: file.create_dataset('a', data=np.zeros(500_000))"
    ),
    "image": (
        "import numpy as np; from PIL import Image; "
        "Image.fromarray(np.random.default_rng(0).integers(0, 256, (2000, 2000), np.uint8)).save(path, format='PNG')"
    ),
}


def test_a_disk_that_takes_no_more_is_one_clear_line(tmp_path):
    """A limit on the size of files stands for a full disk: the system refuses in the same place."""
    for writer in WRITERS:
        (tmp_path / writer).write_bytes(b"before")
    code = f"""
import resource
from pathlib import Path
from unittest import mock
import repro.cli
from weights_conversion.files import atomic_path

resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
for writer, write in {WRITERS!r}.items():
    def command(*arguments, **options):
        with atomic_path(Path({str(tmp_path)!r}) / writer) as path:
            exec(write)
    with mock.patch.object(repro.cli, "_parser", lambda: command):
        assert repro.cli.run_command() == 2
"""
    out, _ = python(code).communicate()
    lines = [line for line in out.splitlines() if line.startswith("repro")]
    assert lines == [f"repro: {tmp_path / writer}: File too large" for writer in WRITERS]
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == dict.fromkeys(
        WRITERS, b"before"
    )


def write_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("a", data=np.zeros(500_000))


def full_disk(folder: Path) -> bool:
    return (
        shutil.which("mount") is not None
        and subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
        ).returncode
        == 0
    )


def test_a_full_disk_really(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if not full_disk(disk):
        pytest.skip("a small file system cannot be mounted here")
    try:
        for write in (
            lambda path: path.write_bytes(bytes(2 << 20)),
            lambda path: torch.save(torch.zeros(500_000), path),
            lambda path: save_file({"a": torch.zeros(500_000)}, path),
            write_hdf5,
        ):
            with (
                pytest.raises(OSError, match="No space left on device") as caught,
                atomic_path(disk / "a") as path,
            ):
                write(path)
            assert caught.value.errno == errno.ENOSPC
            assert caught.value.filename == str(disk / "a")
            assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.skipif(os.getuid() != 0, reason="another user can be taken on by root only")
def test_a_folder_of_someone_else(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir(mode=0o755)
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    code = (
        "import os\nfrom weights_conversion.files import write_text\nos.setuid(65534)\n"
        f"try: write_text({str(folder / 'deep' / 'a.txt')!r}, 'a')\nexcept OSError as error: print(error)"
    )
    out, _ = python(code).communicate()
    assert out.strip() == f"[Errno 13] Permission denied: '{folder / 'deep' / 'a.txt'}'"
    assert list(folder.iterdir()) == []


# --- locks -------------------------------------------------------------------------------------------------

HOLD = (
    "import sys; from pathlib import Path; from repro.files import lock_folder\nlock_folder(Path({!r})); {}"
)


@pytest.fixture
def holder(tmp_path):
    process = python(HOLD.format(str(tmp_path), "print('held', flush=True); sys.stdin.read()"))
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_lock_names_its_holder(tmp_path, holder):
    with pytest.raises(
        InputError, match=rf"in use by process {holder.pid} on .* since \d{{4}}-.*: "
    ) as caught:
        lock_folder(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: ")
    assert "\n" not in str(caught.value)


def test_a_killed_holder_leaves_no_lock(tmp_path, holder):
    holder.kill()
    holder.wait()
    lock_folder(tmp_path)
    assert f"process {os.getpid()} on" in (tmp_path / LOCK_NAME).read_text()


def test_children_do_not_hold_the_lock_for_a_dead_parent(tmp_path):
    """Loader workers notice only after seconds that their parent was killed."""
    process = python(
        HOLD.format(
            str(tmp_path),
            "\nimport os, time\npid = os.fork()\nif pid == 0: time.sleep(20); os._exit(0)\n"
            "print(pid, flush=True); time.sleep(20)",
        )
    )
    child = int(process.stdout.readline())
    try:
        process.kill()
        process.wait()
        lock_folder(tmp_path)
    finally:
        os.kill(child, 9)
        process.stdout.close()
        process.stdin.close()


def test_a_process_does_not_lock_itself_out(tmp_path):
    lock_folder(tmp_path)
    lock_folder(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    lock_folder(tmp_path / "link")
    assert (
        python(HOLD.format(str(tmp_path), ""))
        .communicate()[0]
        .splitlines()[-1]
        .startswith("weights_conversion.errors.InputError")
    )


def test_a_folder_made_again_is_locked_again(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    lock_folder(folder)
    shutil.rmtree(folder)
    folder.mkdir()
    lock_folder(folder)
    assert (folder / LOCK_NAME).exists()


def test_without_locks_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    lock_folder(tmp_path)
    assert "cannot be locked (No locks available)" in caplog.text
