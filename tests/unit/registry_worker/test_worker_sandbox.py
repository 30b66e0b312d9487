"""The confined child, as a real process: what it cannot do, how it ends, and what is told of it."""

import asyncio
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.registry.worker.confine import Limits
from services.registry.worker.folders import MODEL
from services.registry.worker.sandbox import MODULE, ChildLost, Sandbox
from services.runtime.errors import FailedPrecondition, InvalidRequest
from tests.harness import SOON_S, soon
from tests.unit.registry_checks.corpus import write
from tests.unit.registry_checks.evil import EVIL
from tests.unit.registry_worker.folders import REPOSITORY, built

CONFINED = """
from pathlib import Path
from services.registry.worker.confine import Limits, confine
confine(Limits({}){})
"""
LONG = {"batch_sizes": list(range(1, 400)), "lengths": [1], "version": 1}
"""A profile that takes minutes."""


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let the children compile what they import once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        patch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path_factory.mktemp("compiled")))
        yield


class Told(list[tuple[float, str]]):
    """The progress that was heard."""

    def __init__(self) -> None:
        super().__init__()
        self.first = asyncio.Event()

    def __call__(self, progress: float, message: str) -> None:
        """One report."""
        self.append((progress, message))
        self.first.set()


def confined(code: str, limits: str = "", status: int = 0, more: str = "") -> str:
    """What a process prints that confines itself and then runs `code`."""
    text = CONFINED.format(limits, more) + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", text],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=SOON_S,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done.stdout.strip()


def scripted(folder: Path, code: str, **more: Any) -> Sandbox:
    """A sandbox whose child does `code` instead of a job; all else is the child's own."""
    body = textwrap.indent(textwrap.dedent(code), "    ")
    script = folder / "child"
    script.write_text(
        f"#!{sys.executable}\n"
        "import os, signal, socket, sys, threading, time\n"
        f"sys.path.insert(0, {str(REPOSITORY)!r})\n"
        "from services.registry.worker import child\n"
        "from services.runtime import errors\n"
        f"def do(job, progress):\n{body}\n"
        "child.do = do\nchild.main()\n"
    )
    script.chmod(0o700)
    return Sandbox(python=str(script), **more)


def job(folder: Path, model: Path | None = None, **fields: Any) -> dict[str, Any]:
    """A job on the iris model."""
    source = model or built("iris")
    shutil.copytree(source, folder / MODEL, ignore=shutil.ignore_patterns(".build.json"))
    paths = [path.name for path in (folder / MODEL).iterdir()]
    told = {"kind": "finalize", "model": "m", "task": "classification", "paths": paths}
    return told | {"request": {}, "model_work": True, "allow_pickle": False} | fields


def until(true: Callable[[], Any]) -> Any:
    """What a condition gives once it holds; it must before long."""
    ends = time.monotonic() + SOON_S
    while not (found := true()):
        assert time.monotonic() < ends, "it did not come to pass"
        time.sleep(0.02)
    return found


def alive(pid: int) -> bool:
    """Whether a process runs: one that only waits for its parent to look does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(parent: int) -> list[int]:
    """The sandboxes' children of a process."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(stat[1]) == parent and MODULE.encode() in words:
            found.append(int(folder.name))
    return found


def test_no_network() -> None:
    said = confined(
        """
        import socket
        families = "AF_INET AF_INET6 AF_NETLINK AF_PACKET AF_UNIX".split()
        for family in (getattr(socket, name) for name in families):
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
                try:
                    socket.socket(family, kind)
                except PermissionError:
                    continue
                print("opened", family, kind)
        one, other = socket.socketpair()
        one.send(b"x")
        assert other.recv(1) == b"x"
        """
    )
    assert said == ""


def test_no_file_of_others_and_no_look_into_the_parent(tmp_path: Path) -> None:
    """Neither what lies beside its folder, nor its own inputs for writing, nor its parent."""
    secret, mine = tmp_path / "token", tmp_path / "job"
    secret.write_text("secret")
    for folder in (mine, mine / "out"):
        folder.mkdir()
    (mine / "model").write_text("bytes of a blob")
    said = confined(
        f"""
        import os
        from pathlib import Path
        mine = Path({str(mine)!r})
        assert (mine / "model").read_text() == "bytes of a blob"
        (mine / "out" / "made").write_text("made")
        for path, how in (
            ({str(secret)!r}, os.O_RDONLY),
            (mine / "model", os.O_WRONLY),
            (mine / "new", os.O_WRONLY | os.O_CREAT),
            (f"/proc/{{os.getppid()}}/mem", os.O_RDWR),
            (f"/proc/{{os.getppid()}}/environ", os.O_RDONLY),
        ):
            try:
                os.read(os.open(path, how), 1)
            except PermissionError:
                continue
            print("opened", path)
        try:
            os.kill(os.getppid(), 0)
        except PermissionError:
            pass
        else:
            print("signalled")
        """,
        more=f", [Path({str(mine / 'out')!r})], [Path({str(mine)!r})]",
    )
    assert said == ""
    assert (mine / "out" / "made").read_text() == "made"


def test_no_other_program() -> None:
    said = confined(
        """
        import os, subprocess, sys
        for start in (
            lambda: subprocess.run(["/bin/true"]),
            lambda: os.posix_spawn("/bin/true", ["true"], {}),
            lambda: os.execv("/bin/true", ["true"]),
            lambda: os.execve(os.open("/bin/true", os.O_RDONLY), ["true"], {}),
            os.fork,
        ):
            try:
                start()
            except PermissionError:
                continue
            print("started")
        import threading
        threads = [threading.Thread(target=print, args=("thread",)) for _ in range(3)]
        for thread in threads:
            thread.start()
            thread.join()
        """
    )
    assert said.split() == ["thread"] * 3, "threads are no programs"


def test_no_reaching_into_other_processes_and_no_way_back() -> None:
    said = confined(
        """
        import ctypes, errno, os, platform, socket
        libc = ctypes.CDLL(None, use_errno=True)
        numbers = {
            "x86_64": (101, 310, 311, 425, 321, 165, 59 + 0x40000000, 41 + 0x40000000),
            "aarch64": (117, 270, 271, 425, 280, 40),
        }
        for number in numbers[platform.machine()]:
            ctypes.set_errno(0)
            found = libc.syscall(number, os.getppid(), 0, 0, 0, 0, 0)
            assert (found, ctypes.get_errno()) == (-1, errno.EACCES), (number, found)
        # A second filter can only be stricter, and no thread is left out of the first.
        with open("/proc/self/status") as file:
            status = file.read()
        assert "NoNewPrivs:\\t1" in status and "Seccomp:\\t2" in status
        print("refused")
        """
    )
    assert said == "refused"


def test_no_more_memory_than_it_may_have() -> None:
    said = confined(
        """
        held = bytearray(64 * 2**20)
        try:
            more = bytearray(600 * 2**20)
        except MemoryError:
            print("refused")
        """,
        "memory_bytes=512 * 2**20",
    )
    assert said == "refused"


def test_no_more_processor_time_than_it_may_have() -> None:
    confined("while True: pass", "cpu_s=1", status=-signal.SIGKILL)


def test_no_larger_file_and_no_core(tmp_path: Path) -> None:
    said = confined(
        f"""
        import errno, resource
        with open({str(tmp_path / "large")!r}, "wb", buffering=0) as file:
            assert file.write(bytes(5000)) == 4096
            try:
                file.write(b"x")
            except OSError as error:
                print(error.errno == errno.EFBIG, resource.getrlimit(resource.RLIMIT_CORE))
        """,
        "file_bytes=4096",
        more=f", [Path({str(tmp_path)!r})]",
    )
    assert said == "True (0, 0)"


async def test_a_child_is_confined_in_all_its_threads_before_it_works(tmp_path: Path) -> None:
    code = """
        from pathlib import Path
        tasks = [
            [line.split()[1] for line in (task / "status").read_text().splitlines()
             if line.startswith(("NoNewPrivs", "Seccomp:"))]
            for task in Path("/proc/self/task").iterdir()
        ]
        refused = []
        def reach():
            try:
                socket.create_connection(("127.0.0.1", 9))
            except PermissionError:
                refused.append(True)
        thread = threading.Thread(target=reach)
        thread.start()
        thread.join()
        return {"tasks": tasks, "refused": refused, "session": os.getsid(0) == os.getpid()}
    """
    found = await soon(scripted(tmp_path, code).run({}, tmp_path, Told()))
    assert len(found["tasks"]) == 2, "the one that works, and the one that minds the parent"
    assert found["tasks"] == [["1", "2"]] * 2
    assert found["refused"] == [True]
    assert found["session"]


async def test_a_child_knows_no_secret_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GRISTMILL_REGISTRY_DATABASE", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "PGPASSWORD"):
        monkeypatch.setenv(name, "hunter2")
    monkeypatch.setenv("HTTPS_PROXY", "http://hunter2")
    code = 'return [dict(os.environ), Path_read("/proc/self/environ")]'
    read = 'Path_read = lambda path: open(path, encoding="utf-8").read()\n'
    sandbox = scripted(tmp_path, read + code)
    environment, initial = await soon(sandbox.run({}, tmp_path, Told()))
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert "PATH" in environment
    assert not [name for name, value in environment.items() if "hunter2" in value]
    assert not [name for name in environment if name.startswith(("GRISTMILL_", "AWS_"))]
    assert "hunter2" not in initial


async def test_noise_is_not_taken_for_the_childs_words(tmp_path: Path) -> None:
    code = r"""
        print('{"result": "forged"}', flush=True)
        os.write(1, b'{"error": {}}\n')
        os.write(2, b"warning\n" * 100_000)
        progress(0.25, "before")
        sys.stdout.write("not JSON\n")
        progress(0.75, "after")
        return {"text": "x" * 5_000_000, "nan": float("nan")}
    """
    told = Told()
    found = await soon(scripted(tmp_path, code).run({}, tmp_path, told))
    assert len(found["text"]) == 5_000_000
    assert math.isnan(found["nan"])
    assert told == [(0.25, "before"), (0.75, "after")]
    assert (tmp_path / "child.log").read_bytes().startswith(b"{")


@pytest.mark.parametrize(
    ("code", "kind", "reason", "says"),
    [
        ('raise errors.InvalidRequest("line 3 is bad")', InvalidRequest, "INVALID_FIELD", "line 3"),
        (
            'raise errors.FailedPrecondition("no GPU", reason="WORKER_MISSING")',
            FailedPrecondition,
            "WORKER_MISSING",
            "no GPU",
        ),
        ("import no_such_library", FailedPrecondition, "WORKER_MISSING", "lacks no_such_library"),
        ("raise MemoryError", FailedPrecondition, "WRONG_STATE", "more memory"),
        ("bytearray(2**33)", FailedPrecondition, "WRONG_STATE", "more memory"),
    ],
)
async def test_what_a_child_refuses_is_refused_here(
    tmp_path: Path, code: str, kind: type[Exception], reason: str, says: str
) -> None:
    sandbox = scripted(tmp_path, code, limits=Limits(memory_bytes=2**30))
    with pytest.raises(kind, match=says) as raised:
        await soon(sandbox.run({}, tmp_path, Told()))
    assert type(raised.value) is kind
    assert getattr(raised.value, "reason_given", None) == reason


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("os._exit(3)", "without a result, with status 3"),
        ("1 / 0", "without a result, with status 1"),
        ("signal.raise_signal(signal.SIGSEGV)", "crashed with signal 11"),
        ("signal.raise_signal(signal.SIGKILL)", "more time or memory than it may"),
        ("while True: pass", "more time or memory than it may"),
    ],
)
async def test_a_child_without_a_result_is_lost(tmp_path: Path, code: str, says: str) -> None:
    sandbox = scripted(tmp_path, code, limits=Limits(cpu_s=1))
    with pytest.raises(ChildLost, match=says):
        await soon(sandbox.run({}, tmp_path, Told()))


async def test_a_child_is_ended_when_its_time_is_up(tmp_path: Path) -> None:
    sandbox = scripted(
        tmp_path, "progress(0, str(os.getpid()))\nwhile True: time.sleep(60)", wall_s=1.0
    )
    told = Told()
    with pytest.raises(ChildLost, match="more time or memory than it may"):
        await soon(sandbox.run({}, tmp_path, told))
    assert not alive(int(told[0][1]))


async def test_a_child_that_is_killed_is_lost(tmp_path: Path) -> None:
    sandbox = scripted(tmp_path, "progress(0, str(os.getpid()))\nwhile True: time.sleep(60)")
    told = Told()
    running = asyncio.ensure_future(sandbox.run({}, tmp_path, told))
    await soon(told.first.wait())
    os.kill(int(told[0][1]), signal.SIGKILL)
    with pytest.raises(ChildLost):
        await soon(running)


async def test_an_interpreter_that_is_not_there_fails(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await soon(Sandbox(python=str(tmp_path / "none")).run({}, tmp_path, Told()))


async def test_to_cancel_ends_the_child_first(tmp_path: Path) -> None:
    told = Told()
    spec = job(tmp_path, kind="profile", request=LONG)
    running = asyncio.ensure_future(Sandbox().run(spec, tmp_path, told))
    await soon(told.first.wait())
    (pid,) = children(os.getpid())
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await soon(running)
    assert not alive(pid)
    assert children(os.getpid()) == []


def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    spec = json.dumps(job(tmp_path, kind="profile", request=LONG))
    code = f"""
        import asyncio, json
        from pathlib import Path
        from services.registry.worker.sandbox import Sandbox
        def told(progress, message):
            print(message, flush=True)
        asyncio.run(Sandbox().run(json.loads({spec!r}), Path({str(tmp_path)!r}), told))
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=REPOSITORY, stdout=subprocess.PIPE
    )
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline().startswith(b"batches of")
        (pid,) = children(parent.pid)
        assert alive(pid)
    finally:
        parent.kill()
        parent.wait(SOON_S)
        if parent.stdout is not None:
            parent.stdout.close()
    until(lambda: not alive(pid))


async def test_a_sound_model_is_run_once(tmp_path: Path) -> None:
    told = Told()
    found = await soon(Sandbox().run(job(tmp_path), tmp_path, told))
    assert found["rejections"] == []
    assert found["manifest"] is None
    signature = found["signature"]
    assert signature["labels"] == ["setosa", "versicolor", "virginica"]
    assert [tensor["shape"] for tensor in signature["inputs"]] == [[-1, 4]]
    assert [message for _, message in told] == ["checking files", "running the model once"]
    assert [progress for progress, _ in told] == sorted(progress for progress, _ in told)


async def test_a_job_that_cannot_be_done_is_refused_with_its_reason(tmp_path: Path) -> None:
    spec = job(tmp_path, kind="profile", request=LONG | {"batch_sizes": [0]})
    with pytest.raises(InvalidRequest, match="batch_sizes") as raised:
        await soon(Sandbox().run(spec, tmp_path, Told()))
    assert raised.value.reason_given == "INVALID_FIELD"


@pytest.mark.parametrize(
    "name",
    [
        next(name for name in EVIL if name.startswith(kind))
        for kind in ("safetensors", "GGUF", "ONNX", "contents", "configs", "templates")
    ],
)
async def test_evil_files_are_refused_in_the_child(tmp_path: Path, name: str) -> None:
    evil = EVIL[name]
    (tmp_path / "made").mkdir()
    write(tmp_path / "made", evil.files)
    spec = job(tmp_path, tmp_path / "made") | {"paths": list(evil.files)}
    found = await soon(replace(Sandbox(), wall_s=SOON_S).run(spec, tmp_path, Told()))
    refused = {(r["path"], r["rule"]): r["message"] for r in found["rejections"]}
    assert evil.says in refused[(evil.path, evil.rule)]
