"""Sandboxes, attacked from inside by real processes, and what is left of them."""

import ast
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from nanoray.inference.sandbox import (
    Level,
    Limits,
    Sandbox,
    StoppedError,
    choose_level,
    strongest_level,
)
from tests.sandboxes import needs_strong, no_trace_in

LEVELS = [pytest.param("strong", marks=needs_strong), "basic"]

TRY = """
def attempt():
    import ctypes, importlib, os, posix, resource, signal, socket, subprocess
    def libc(function, *arguments):
        if getattr(ctypes.CDLL(None, use_errno=True), function)(*arguments) < 0:
            raise OSError(ctypes.get_errno(), function)
    {code}
try:
    attempt()
except BaseException as error:
    send(type(error).__name__.encode())
else:
    send(b"it worked")
"""

FORBIDDEN = {
    "fork": "os.fork()",
    "fork by posix": "posix.fork()",
    "fork by a reloaded os": "importlib.reload(os).fork()",
    "fork by libc": "libc('fork')",
    "vfork by number": "libc('syscall', 58)",
    "forkpty": "os.forkpty()",
    "exec": "os.execv('/bin/sh', ['sh'])",
    "spawn": "os.posix_spawn('/bin/sh', ['sh'], {})",
    "subprocess": "subprocess.run(['/bin/true'])",
    "system": "if os.system('true'): raise PermissionError",
    "a session of its own": "os.setsid()",
    "a group of its own": "os.setpgid(0, 0)",
    "kill the parent": "os.kill(os.getppid(), 9)",
    "kill all": "os.kill(-1, 9)",
    "kill a group": "os.killpg(os.getpgid(os.getppid()), 9)",
    "ptrace": "libc('ptrace', 16, os.getppid(), 0, 0)",
    "read a file": "open('/etc/passwd').read()",
    "list the root": "os.listdir('/')",
    "the parent's environment": "open(f'/proc/{os.getppid()}/environ').read()",
    "the parent's memory": "open(f'/proc/{os.getppid()}/mem').read()",
    "its own environment": "open('/proc/self/environ').read()",
    "write elsewhere": "open('/tmp/nanoray-escaped', 'w')",
    "write to Python": "open(os.__file__, 'a')",
    "empty a file of Python": "os.open(os.__file__, os.O_RDONLY | os.O_TRUNC)",
    "a link out": "os.symlink('/etc/passwd', 'x'); open('x').read()",
    "a hard link out": "os.link(os.__file__, 'x')",
    "change a mode": "os.chmod(os.getcwd(), 0)",
    "change an owner": "os.chown(os.getcwd(), 1, 1)",
    "remove its folder": "os.rmdir(os.getcwd())",
    "rename its folder": "os.rename(os.getcwd(), os.getcwd() + '-elsewhere')",
    "a socket": "socket.socket()",
    "a local socket": "socket.socket(socket.AF_UNIX)",
    "a pair of sockets": "socket.socketpair()",
    "more memory": "resource.prlimit(0, resource.RLIMIT_AS, (-1, -1))",
    "the parent's limits": "resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE)",
    "outlive the parent": "libc('prctl', 1, 0, 0, 0, 0)",
    "another user": "os.setuid(1)",
    "another root": "os.chroot('.')",
    "namespaces": "libc('unshare', 0x10000000)",
    "memory that is a file": "os.memfd_create('x')",
    "memory that survives": "libc('shmget', 4711, 4096, 0o1600)",
}

HARMLESS = {
    "threads": "import threading; t = threading.Thread(target=int); t.start(); t.join()",
    "a pool": "from concurrent.futures import ThreadPoolExecutor as P; list(P(2).map(int, '12'))",
    "hashes": "import hashlib; hashlib.md5(b'').hexdigest(), hashlib.sha3_256(b'').hexdigest()",
    "random numbers": "import random, secrets; random.random(), secrets.token_hex(), os.urandom(8)",
    "times": "import datetime, time; datetime.datetime.now(); time.sleep(0.001)",
    "numbers": "import decimal, fractions, math, statistics; decimal.Decimal(2).sqrt()",
    "text": "import json, re, string, textwrap, unicodedata; re.findall('.', json.dumps([1]))",
    "its own files": "open('x', 'w').write('y'); assert open('x').read() == 'y'; os.remove('x')",
    "temporary files": "import tempfile; tempfile.TemporaryFile().write(b'x')",
    "folders": "import shutil; os.makedirs('a/b'); shutil.copyfile(os.__file__, 'a/b/c'); "
    "os.rename('a', 'd'); shutil.rmtree('d')",
    "a database": "import sqlite3; sqlite3.connect('x').execute('create table y (z)')",
    "pipes": "r, w = os.pipe(); os.write(w, b'x'); os.read(r, 1)",
    "alarms": "signal.signal(signal.SIGALRM, lambda *_: None); signal.alarm(1); signal.pause()",
    "signals to itself": "signal.signal(signal.SIGUSR1, print); os.kill(os.getpid(), 10); "
    "signal.raise_signal(10)",
    "its limits": "resource.getrlimit(resource.RLIMIT_AS)",
    "printing": "print('x' * 10**7, flush=True); os.write(2, b'x')",
}


@pytest.fixture(autouse=True)
def no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with no_trace_in(tmp_path / "sandboxes", monkeypatch):
        yield


def first_message(program: str, level: Level, limits: Limits | None = None) -> str:
    """Run a program until it sends something."""
    with Sandbox(program, level=level, limits=limits or Limits()) as sandbox:
        sandbox.wait_until_ready()
        return sandbox.receive().decode()


def run_script(script: str) -> subprocess.CompletedProcess[str]:
    """Run a script that imports nanoray, in a process whose rights it may give up."""
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )


@needs_strong
@pytest.mark.parametrize("name", FORBIDDEN)
def test_what_reaches_out_is_forbidden(name: str) -> None:
    outcome = first_message(TRY.format(code=FORBIDDEN[name]), "strong")

    assert outcome == "PermissionError"


@needs_strong
@pytest.mark.parametrize("name", HARMLESS)
def test_what_only_computes_works(name: str) -> None:
    outcome = first_message(TRY.format(code=HARMLESS[name]), "strong")

    assert outcome == "it worked"


@needs_strong
def test_system_calls_newer_than_the_list_do_not_exist() -> None:
    numbers = {"io_uring_setup": 425, "pidfd_open": 434, "clone3": 435, "openat2": 437}
    program = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
errors = {name: ctypes.get_errno() for name, number in NUMBERS if libc.syscall(number, 0, 0, 0)}
send(repr(errors).encode())
""".replace("NUMBERS", repr(list(numbers.items())))

    errors = ast.literal_eval(first_message(program, "strong"))

    assert errors == dict.fromkeys(numbers, 38)


@pytest.mark.parametrize("level", LEVELS)
def test_neither_environment_nor_foreign_files_are_inherited(level: Level) -> None:
    program = """
import ctypes, os
environment = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ")
def is_open(fd):
    try:
        return bool(os.fstat(fd))
    except OSError:
        return False
is_empty = dict(os.environ) == {} and (not environment or environment[0] is None)
send(repr((is_empty, [fd for fd in range(64) if is_open(fd)])).encode())
"""
    with open(os.devnull) as ours:
        os.set_inheritable(ours.fileno(), True)

        is_empty, open_files = ast.literal_eval(first_message(program, level))

    assert is_empty
    assert open_files == [0, 1, 2, 3, 4]  # /dev/null three times, and the channel


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("x = bytearray(10 * 2**30)", "MemoryError"),
        ("x = [open('/dev/null') for _ in range(100)]", "OSError"),
        ("x = open('x', 'wb', 0); x.write(b'y' * 2**24); x.write(b'y')", "OSError"),
        ("resource.setrlimit(resource.RLIMIT_NOFILE, (10**5, 10**5))", "ValueError"),
    ],
    ids=["memory", "open files", "size of a file", "raising a limit"],
)
def test_limits_hold(level: Level, code: str, error: str) -> None:
    outcome = first_message(TRY.format(code=code), level)

    assert outcome == error


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import os; os._exit(0)", "exited"),
        ("raise SystemExit", "exited"),
        ("1 / 0", "exited"),
        ("import os; os.abort()", "crashed with SIGABRT"),
        ("import os; os.closerange(0, 64)\nwhile True: pass", "closed its channel"),
        ("while True: pass", "timed out"),
        ("import time; time.sleep(1000)", "timed out"),
        ("import signal; signal.sigwait([signal.SIGUSR1])", "timed out"),
        ("import signal\nfor s in {*signal.Signals} - {9, 19}: signal.signal(s, lambda *_: 0)\n"
         "while True: pass", "timed out"),
        ("send(b'x' * 2_000_000)", "output too large"),
        ("import os\nwhile True: os.write(4, b'x' * 2**20)", "output too large"),
        ("import os; os.write(4, b'\\0\\0\\0\\5abc'); import time; time.sleep(1000)", "timed out"),
    ],
)  # fmt: skip
def test_a_program_that_gives_no_answer_is_ended(level: Level, program: str, reason: str) -> None:
    limits = Limits(timeout_seconds=0.3)

    with pytest.raises(StoppedError, match=reason):
        first_message(program, level, limits)


def test_a_program_that_takes_no_message_is_ended() -> None:
    limits = Limits(timeout_seconds=0.3)

    with Sandbox("while True: pass", level="basic", limits=limits) as sandbox:
        sandbox.wait_until_ready()
        with pytest.raises(StoppedError, match="timed out"):
            sandbox.send(b"x" * 10_000_000)


@pytest.mark.parametrize("level", LEVELS)
def test_large_messages_arrive_whole(level: Level) -> None:
    message = os.urandom(900_000)

    with Sandbox("send(receive()[::-1])", level=level, limits=Limits()) as sandbox:
        sandbox.wait_until_ready()
        sandbox.send(message)
        answer = sandbox.receive()

    assert answer == message[::-1]


@pytest.mark.parametrize("level", LEVELS)
def test_threads_do_not_outlive_a_sandbox(level: Level) -> None:
    program = """
import threading, time
try:
    threading.Thread(target=time.sleep, args=(1000,)).start()
except RuntimeError:  # a basic sandbox has none, unless it is root's
    pass
send(b"done")
"""

    message = first_message(program, level)

    assert message == "done"


@needs_strong
def test_a_folder_is_removed_whatever_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("text")
    program = """
import ast
import os
os.symlink(receive().decode(), "link")
os.symlink("link", "link to link")
os.mkdir("forbidden"); open("forbidden/file", "w"); os.mkdir("locked", 0)
os.mkdir("no\\nname"); open(b"\\xff" * 255, "w")
for _ in range(2000):
    os.mkdir("d" * 50); os.chdir("d" * 50); open("file", "w")
send(b"done")
"""

    with Sandbox(program, level="strong", limits=Limits()) as sandbox:
        sandbox.wait_until_ready()
        sandbox.send(str(tmp_path / "kept").encode())
        sandbox.receive()
        assert len(os.listdir(sandbox.folder)) == 7

    assert not os.path.exists(sandbox.folder)
    assert (tmp_path / "kept" / "file").read_text() == "text"


@pytest.mark.parametrize(
    "code",
    [
        "os.chmod(here, 0)",
        "os.mkdir('a'); os.mkdir('a/b'); os.chmod('a/b', 0); os.chmod('a', 0)",
        "os.rmdir(here)",
        "os.rmdir(here); os.symlink(receive().decode(), here)",
        "os.rmdir(here); open(here, 'w')",
    ],
)
def test_a_basic_sandbox_may_do_anything_to_its_folder(code: str, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    program = f"import os\nhere = os.getcwd()\n{code}\nsend(b'done')"

    with Sandbox(program, level="basic", limits=Limits()) as sandbox:
        sandbox.wait_until_ready()
        sandbox.send(str(tmp_path / "kept").encode())
        sandbox.receive()

    assert not os.path.lexists(sandbox.folder)
    assert (tmp_path / "kept").is_dir()


GIVE_UP_ROOT = """
import ast
import os
from nanoray.inference import sandbox, sandbox_child
sandbox_child.drop_privileges(os.getppid())
"""


@needs_strong
def test_a_user_without_privileges_has_strong_sandboxes() -> None:
    done = run_script(f"{GIVE_UP_ROOT}\nassert sandbox.strongest_level() == 'strong'")

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(sys.platform != "linux", reason="gives up capabilities of Linux")
def test_forbidden_folders_are_removed_without_privileges(tmp_path: Path) -> None:
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").touch()
    for folder in ("a/b/c", "a/b", "a"):
        (tmp_path / folder).chmod(0)

    done = run_script(f"{GIVE_UP_ROOT}\nsandbox.remove_folder({str(tmp_path / 'a')!r})")

    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "a").exists()


WITHOUT = """
import errno
from nanoray.inference import sandbox, sandbox_child as child
child.prctl(child.PR_SET_NO_NEW_PRIVS, 1)
child.install_filter([
    (child.LOAD, 0, 0, child.NUMBER),
    (child.JUMP_EQUAL, 0, 1, {number}),
    (child.RETURN, 0, 0, child.DENY | errno.ENOSYS),
    (child.RETURN, 0, 0, child.ALLOW),
])
assert sandbox.choose_level("auto") == "basic" == sandbox.choose_level("basic")
with sandbox.Sandbox("send(b'')", level="basic", limits=sandbox.Limits()) as basic:
    basic.wait_until_ready()
    basic.receive()
"""
STRONG_SANDBOX = """
with sandbox.Sandbox("send(b'')", level="strong", limits=sandbox.Limits()) as strong:
    strong.wait_until_ready()
"""


@needs_strong
@pytest.mark.parametrize("use", ["sandbox.choose_level('strong')", STRONG_SANDBOX])
def test_strong_fails_closed_on_a_kernel_without_landlock(use: str) -> None:
    done = run_script(WITHOUT.format(number=444) + use)

    assert "LevelError" in done.stderr.splitlines()[-1]
    assert "(Landlock: Function not implemented). Use Linux 5.13" in done.stderr


def test_auto_is_the_strongest_level() -> None:
    assert choose_level("auto") == strongest_level()


@pytest.mark.skipif(sys.platform != "linux", reason="needs the death signal of Linux")
@pytest.mark.parametrize("level", LEVELS)
def test_a_sandbox_dies_with_its_parent(level: Level, tmp_path: Path) -> None:
    script = f"""
import sys, tempfile, time
from nanoray.inference.sandbox import Limits, Sandbox
tempfile.tempdir = {str(tmp_path)!r}
program = "import time; send(b'x'); time.sleep(1000)"
with Sandbox(program, level={level!r}, limits=Limits()) as sandbox:
    sandbox.wait_until_ready(); sandbox.receive()
    sys.stdout.write(f"{{sandbox.process.pid}}\\n"); sys.stdout.flush()
    time.sleep(1000)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))

        parent.send_signal(signal.SIGKILL)

    deadline = time.monotonic() + 30
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.wait()  # this process has adopted it
