from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import wait_until

from rotescale.fork_server.caller import ForkedProcessError, ForkServer

HOLDER = """
import sys
from rotescale.fork_server.caller import ForkServer
server = ForkServer(sys.argv[1], preload=(), owner=int(sys.argv[2]))
server.call("fork_targets:wait_for_ever", {"file": sys.argv[3]})
"""


@pytest.fixture
def owner() -> Iterator[int]:
    """A process whose end ends the server."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1e6)"])
    yield process.pid
    process.kill()
    process.wait()


def server_of(owner: int, *, preload: tuple[str, ...] = ("fork_targets",)) -> ForkServer:
    return ForkServer(f"test-{os.getpid()}-{owner}", preload=preload, owner=owner)


@pytest.fixture
def server(owner: int) -> Iterator[ForkServer]:
    made = server_of(owner)
    yield made
    shutil.rmtree(made.folder, ignore_errors=True)


def alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


def held_process(server: ForkServer, file: Path) -> tuple[subprocess.Popen[bytes], int]:
    """A caller in a process of its own, and the forked process that it waits for."""
    command = [sys.executable, "-c", HOLDER, server.key, str(server.owner), str(file)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    caller = subprocess.Popen(command, env=environment)
    wait_until(lambda: file.exists() and file.read_text() != "")
    return caller, int(file.read_text())


def test_a_forked_process_sees_what_its_caller_sees(
    server: ForkServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    parents = set()
    for word in ("one", "two"):
        monkeypatch.setenv("WORD", word)
        monkeypatch.chdir(tmp_path)
        server.call("fork_targets:note", {"file": str(tmp_path / "note")})
        seen, directory, parent, pid = (tmp_path / "note").read_text().split("\n")
        assert (seen, directory) == (word, str(tmp_path))
        assert int(pid) != os.getpid()
        parents.add(parent)
    assert len(parents) == 1, "the second call found another server"
    assert str(os.getpid()) not in parents
    assert capfd.readouterr().out.count("printed where the caller prints") == 2


@pytest.mark.parametrize(
    ("target", "arguments", "message"),
    [
        ("fail", {"message": "no such fact"}, "ValueError: no such fact"),
        ("leave", {"code": 7}, "exit code 7"),
        ("die", {}, "signal 9 .SIGKILL."),
        ("missing", {}, "AttributeError: .*missing"),
    ],
)
def test_what_went_wrong_is_told_and_the_server_lives_on(
    server: ForkServer, target: str, arguments: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ForkedProcessError, match=message):
        server.call(f"fork_targets:{target}", arguments)
    server.call("fork_targets:leave", {"code": 0})


def test_word_of_the_caller_reaches_the_forked_process(server: ForkServer) -> None:
    words = iter([None, {"nodes": ["a"]}, {"nodes": ["a", "b"]}])
    last = {"nodes": ["a", "b"]}
    server.call("fork_targets:wait_for_word", {"word": last}, notice=lambda: next(words, last))


def test_a_forked_process_ends_with_its_caller(server: ForkServer, tmp_path: Path) -> None:
    caller, forked = held_process(server, tmp_path / "pid")
    caller.kill()
    caller.wait()
    wait_until(lambda: not alive(forked))
    server.call("fork_targets:leave", {"code": 0})


@pytest.mark.parametrize("how", ["killed", "owner gone"])
def test_all_that_a_server_has_forked_ends_with_it(
    server: ForkServer, tmp_path: Path, how: str
) -> None:
    caller, forked = held_process(server, tmp_path / "pid")
    parent = int(Path(f"/proc/{forked}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(parent if how == "killed" else server.owner, signal.SIGKILL)
    wait_until(lambda: not alive(forked) and not alive(parent))
    assert caller.wait(timeout=30) == 1, "the caller has not been told"
    if how == "owner gone":
        wait_until(lambda: not server.folder.exists())
    else:
        # A server that was killed leaves its socket; the next call starts another.
        server.call("fork_targets:leave", {"code": 0})


def test_word_that_nobody_reads_hides_neither_the_end_nor_the_reason(server: ForkServer) -> None:
    words = iter(range(1000))
    server.call("fork_targets:nap", {"seconds": 1.5}, notice=lambda: next(words))
    with pytest.raises(ForkedProcessError, match="ValueError: tired"):
        server.call("fork_targets:nap_and_fail", {"seconds": 1.5}, notice=lambda: next(words))


def test_a_server_that_does_not_answer_is_not_waited_for_without_limit(owner: int) -> None:
    server = server_of(owner, preload=("fork_targets_slow",))
    with pytest.raises(ForkedProcessError, match=r"not answered in 0\.5 s"):
        server.call("fork_targets:leave", {"code": 0}, start_seconds=0.5)
    os.kill(owner, signal.SIGKILL)
    wait_until(lambda: not server.folder.exists())


def test_a_folder_that_others_can_enter_is_refused(server: ForkServer, tmp_path: Path) -> None:
    server.folder.mkdir()
    server.folder.chmod(0o755)
    with pytest.raises(PermissionError, match="this user alone"):
        server.call("fork_targets:leave", {"code": 0})
    server.folder.rmdir()
    (tmp_path / "mine").mkdir(mode=0o700)
    server.folder.symlink_to(tmp_path / "mine")
    with pytest.raises(PermissionError, match="this user alone"):
        server.call("fork_targets:leave", {"code": 0})
    server.folder.unlink()


def test_a_server_that_has_ended_leaves_nothing(server: ForkServer) -> None:
    """And calls that come while it ends find it, or start another."""
    for _ in range(3):
        server.call("fork_targets:leave", {"code": 0})
    # Ten seconds after a child that ended well.
    wait_until(lambda: not server.folder.exists(), timeout_seconds=60)
    server.call("fork_targets:leave", {"code": 0})


def test_a_forked_process_has_no_descriptors_of_other_calls(
    server: ForkServer, tmp_path: Path
) -> None:
    callers = [held_process(server, tmp_path / f"pid-{n}")[0] for n in range(3)]
    server.call("fork_targets:list_descriptors", {"file": str(tmp_path / "open")})
    found = (tmp_path / "open").read_text().splitlines()
    # Its own connection, and nothing that was received with the call.
    assert sum(link.startswith("socket:") for link in found) == 1, found
    assert not [link for link in found if "memfd" in link or "pidfd" in link], found
    for caller in callers:
        caller.kill()
        caller.wait()


def test_callers_at_once_share_one_server(server: ForkServer, tmp_path: Path) -> None:
    held = [held_process(server, tmp_path / f"pid-{n}") for n in range(2)]
    parents = {
        Path(f"/proc/{forked}/stat").read_text().rpartition(")")[2].split()[1] for _, forked in held
    }
    assert len(parents) == 1
    # The end of one caller is not taken for the end of another.
    held[0][0].kill()
    wait_until(lambda: not alive(held[0][1]))
    time.sleep(0.1)
    assert alive(held[1][1])
    held[1][0].kill()
    for caller, _ in held:
        caller.wait()


def test_a_server_that_cannot_import_says_where_its_log_is(owner: int) -> None:
    server = server_of(owner, preload=("no_such_module",))
    with pytest.raises(ForkedProcessError, match=str(server.log)):
        server.call("fork_targets:leave", {"code": 0})
    assert "no_such_module" in server.log.read_text()
    shutil.rmtree(server.folder)


def test_a_long_environment_arrives_whole(
    server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORD", "x" * 100_000)
    monkeypatch.setenv("ANOTHER", "y" * 120_000)
    monkeypatch.setenv("A_THIRD", "z" * 120_000)
    server.call("fork_targets:note", {"file": str(tmp_path / "note")})
    assert (tmp_path / "note").read_text().startswith("x" * 100_000 + "\n")
