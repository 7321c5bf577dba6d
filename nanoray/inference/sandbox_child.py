"""The inside of a sandbox: a process gives up its rights, then runs a program that it was sent.

It is started as a file, `python -I -S sandbox_child.py ...`, so it imports the standard library
alone; `nanoray/inference/sandbox.py` starts it. File descriptors 0 and 1 are a channel of messages,
each preceded by its length in 4 bytes, the first of them the program. The answer to the program is
b"ready" or why the rights could not be given up; only after b"ready" is any of it run, with the
functions `receive() -> bytes` and `send(bytes)` among its names.

What is not allowed is denied. A list of what is forbidden would be outrun by the next kernel.
"""

import ctypes
import errno
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable, Iterator

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
SECCOMP_MODE_FILTER = 2
CAPABILITY_VERSION_3 = 0x20080522

# linux/landlock.h: the three calls have the same numbers on every machine.
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
LANDLOCK_CREATE_RULESET_VERSION, LANDLOCK_RULE_PATH_BENEATH = 1, 1
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << bit for bit in range(6))
MAKE_DIR, MAKE_REG, MAKE_SYM, REFER, TRUNCATE = 1 << 7, 1 << 8, 1 << 12, 1 << 13, 1 << 14
OF_FILES = WRITE_FILE | READ_FILE | TRUNCATE
READ = READ_FILE | READ_DIR
WRITE = REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SYM | REFER | OF_FILES
NUM_FS_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many kinds of access to files a version of Landlock knows; later ones know as many as 5."""

# linux/bpf_common.h: a program of the kernel's filter is a list of (code, jump if true, jump if
# false, constant), and each of ours looks at one word of `struct seccomp_data`.
LOAD, AND, RETURN = 0x20, 0x54, 0x06
JUMP_EQUAL, JUMP_AT_LEAST = 0x15, 0x35
ALLOW, DENY, KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
NUMBER, ARCHITECTURE = 0, 4
ALL_BITS = 0xFFFFFFFF
Instruction = tuple[int, int, int, int]
Check = tuple[int, int, list[int]]
"""Where a word lies, which of its bits count, and the values that they may have."""

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
FIRST_NEW_SYSCALL = 424
"""Numbers from here on came after 2018. What is not allowed of them is answered with "there is no
such call", at which a C library falls back on an older one, as from clone3 on clone."""

ALLOWED = """
read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67, pwrite64 18 68, preadv 295 69,
pwritev 296 70, lseek 8 62, sendfile 40 71, copy_file_range 326 285, fsync 74 82, fdatasync 75 83,
ftruncate 77 46, fallocate 285 47, fadvise64 221 223, close 3 57, close_range 436 436, dup 32 23,
dup2 33 -, dup3 292 24, pipe 22 -, pipe2 293 59, poll 7 -, ppoll 271 73, select 23 -,
pselect6 270 72, access 21 -, faccessat 269 48, faccessat2 439 439, stat 4 -, lstat 6 -, fstat 5 80,
newfstatat 262 79, statx 332 291, getdents64 217 61, getcwd 79 17, chdir 80 49, fchdir 81 50,
mkdir 83 -, mkdirat 258 34, rmdir 84 -, unlink 87 -, unlinkat 263 35, rename 82 -, renameat 264 38,
renameat2 316 276, symlink 88 -, symlinkat 266 36, readlink 89 -, readlinkat 267 78, umask 95 166,
brk 12 214, mmap 9 222, munmap 11 215, mremap 25 216, mprotect 10 226, madvise 28 233, msync 26 227,
futex 202 98, set_robust_list 273 99, get_robust_list 274 100, rseq 334 293, membarrier 324 283,
set_tid_address 218 96, gettid 186 178, getpid 39 172, getppid 110 173, getcpu 309 168,
sched_yield 24 124, sched_getaffinity 204 123, exit 60 93, exit_group 231 94,
restart_syscall 219 128, rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139,
rt_sigpending 127 136, rt_sigtimedwait 128 137, rt_sigsuspend 130 133, sigaltstack 131 132,
pause 34 -, clock_gettime 228 113, clock_getres 229 114, clock_nanosleep 230 115, nanosleep 35 101,
gettimeofday 96 169, time 201 -, times 100 153, getitimer 36 102, setitimer 38 103, alarm 37 -,
getrusage 98 165, getrlimit 97 163, getuid 102 174, geteuid 107 175, getgid 104 176,
getegid 108 177, getgroups 115 158, getresuid 118 148, getresgid 120 150, getpgrp 111 -,
getpgid 121 155, getsid 124 156, uname 63 160, sysinfo 99 179, getrandom 318 278
"""
CONDITIONAL = """
open 2 -, openat 257 56, clone 56 220, kill 62 129, tgkill 234 131, fcntl 72 25, ioctl 16 29,
prlimit64 302 261
"""
"""Name, number on x86_64 and number on aarch64 of what CPython and a C library need to compute, to
read and to write. Not among them is what Landlock does not see: chmod, chown, utime, setxattr."""

CLONE_THREAD = 0x00010000
HARMLESS_IOCTLS = [0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451]
"""TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX."""
HARMLESS_FCNTLS = [0, 1, 2, 3, 4, 5, 6, 7, 1030]
"""To duplicate, to get and set flags, to lock; F_SETOWN would send signals to other processes."""


class RefusedError(Exception):
    """The kernel did not take a right away."""


def main(arguments: list[str]) -> None:
    """Give up all rights but those of the level, and run the program.

    Args:
        arguments: the level, the parent's process id, and the limits: seconds of CPU, bytes of
            memory, bytes of a file, open files.
    """
    level, parent, *limits = arguments
    receive, send = open_channel()
    program = receive().decode("utf-8", "surrogatepass")
    os.environ.clear()  # Python itself has set LC_CTYPE
    try:
        set_limits(*map(int, limits))
        give_up_rights(level, int(parent))
    except (RefusedError, OSError, ValueError, AttributeError) as error:
        send(str(error).encode())
        return
    send(b"ready")
    names = {"__name__": "__main__", "receive": receive, "send": send}
    exec(compile(program, "<program>", "exec"), names)


def give_up_rights(level: str, parent: int) -> None:
    """Keep only the rights of a level."""
    if sys.platform == "linux":
        drop_privileges(parent)
    if level == "strong":
        restrict_files(os.getcwd())
        install_filter(filter_program(os.uname().machine, os.getpid()))
    else:
        # Nor may it start threads, unless it is root, whom this limit does not bind.
        limit(resource.RLIMIT_NPROC, 0)


def open_channel() -> tuple[Callable[[], bytes], Callable[[bytes], None]]:
    """Move the channel away from stdin and stdout, where programs read and print."""
    inward, outward = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)

    def read(size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            chunk = os.read(inward, size - len(data))
            if not chunk:
                os._exit(0)  # nobody is there to talk to
            data += chunk
        return bytes(data)

    def receive() -> bytes:
        return read(int.from_bytes(read(4), "big"))

    def send(message: bytes) -> None:
        rest = memoryview(len(message).to_bytes(4, "big") + message)
        while rest:
            rest = rest[os.write(outward, rest) :]

    return receive, send


def set_limits(cpu_seconds: int, memory_bytes: int, file_bytes: int, open_files: int) -> None:
    """Bound what the process may use; it can lower the bounds, but never raise them."""
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_CPU, cpu_seconds)
    limit(resource.RLIMIT_FSIZE, file_bytes)
    limit(resource.RLIMIT_NOFILE, open_files)
    try:
        limit(resource.RLIMIT_AS, memory_bytes)
    except ValueError:  # macOS takes no bound below what is mapped already, which is a lot
        if sys.platform == "linux":
            raise


def limit(kind: int, most: int) -> None:
    """Set one limit, or leave a lower one that holds already."""
    _, present = resource.getrlimit(kind)
    bound = most if present == resource.RLIM_INFINITY else min(most, present)
    resource.setrlimit(kind, (bound, bound))


def drop_privileges(parent: int) -> None:
    """Give up what root may do, never get it back, and die with the parent."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("Ii", CAPABILITY_VERSION_3, 0)
    if libc.capset(header, bytes(24)):
        raise RefusedError(f"capset: {os.strerror(ctypes.get_errno())}")
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_DUMPABLE, 0)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)  # it died before the kernel was asked to watch it


def prctl(option: int, *values: int) -> None:
    """Change a property of this process."""
    words = [ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4]]
    if ctypes.CDLL(None, use_errno=True).prctl(option, *words):
        raise RefusedError(f"prctl {option}: {os.strerror(ctypes.get_errno())}")


def restrict_files(folder: str) -> None:
    """Forbid, by Landlock, all files but the folder's, Python's own, and shared libraries.

    Connections and signals to others are forbidden too where the kernel's Landlock knows them; the
    filter of system calls forbids them anyway.
    """
    version = landlock(LANDLOCK_CREATE_RULESET, None, 0, LANDLOCK_CREATE_RULESET_VERSION)
    rights = (1 << NUM_FS_RIGHTS.get(version, max(NUM_FS_RIGHTS.values()))) - 1
    num_words = 1 if version < 4 else 2 if version < 6 else 3  # files, network, scopes
    attributes = struct.pack(f"{num_words}Q", *(rights, 0b11, 0b11)[:num_words])
    rules = landlock(LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0)
    allow(rules, folder, (READ | WRITE) & rights)
    allow(rules, os.devnull, (READ_FILE | WRITE_FILE) & rights)
    libraries = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", f"{sys.base_prefix}/lib"]
    for path in [*sys.path, *libraries, "/etc/ld.so.cache", "/dev/urandom"]:
        allow(rules, path, READ | EXECUTE)
    landlock(LANDLOCK_RESTRICT_SELF, rules, 0)
    os.close(rules)


def allow(rules: int, path: str, rights: int) -> None:
    """Add what may be done with a file, or with all that lies in a folder, if it exists."""
    try:
        beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    if not os.path.isdir(path):
        rights &= OF_FILES | EXECUTE
    rule = struct.pack("=Qi", rights, beneath)
    landlock(LANDLOCK_ADD_RULE, rules, LANDLOCK_RULE_PATH_BENEATH, rule, 0)
    os.close(beneath)


def landlock(number: int, *arguments: int | bytes | None) -> int:
    """Make one of the three system calls of Landlock."""
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    result: int = ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *words)
    if result < 0:
        raise RefusedError(f"Landlock: {os.strerror(ctypes.get_errno())}")
    return result


def filter_program(machine: str, pid: int) -> list[Instruction]:
    """Write the filter of system calls of a process.

    Args:
        machine: x86_64 or aarch64; a call by another convention kills the process.
        pid: of the process, which may send signals to no other.
    """
    if machine not in ARCHITECTURES:
        raise RefusedError(f"seccomp: no list of system calls for {machine}")
    program = [
        (LOAD, 0, 0, ARCHITECTURE),
        (JUMP_EQUAL, 1, 0, ARCHITECTURES[machine]),
        (RETURN, 0, 0, KILL_PROCESS),
        (LOAD, 0, 0, NUMBER),
    ]
    for number in syscalls(ALLOWED, machine).values():
        program += [(JUMP_EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]
    checks = checks_of_arguments(pid)
    for name, number in syscalls(CONDITIONAL, machine).items():
        body = [one for check in checks[name] for one in instructions(*check)]
        program += [(JUMP_EQUAL, 0, len(body) + 1, number), *body, (RETURN, 0, 0, ALLOW)]
    return [
        *program,
        (JUMP_AT_LEAST, 0, 1, FIRST_NEW_SYSCALL),
        (RETURN, 0, 0, DENY | errno.ENOSYS),
        (RETURN, 0, 0, DENY | errno.EPERM),
    ]


def syscalls(table: str, machine: str) -> dict[str, int]:
    """Read the numbers of a machine from a table; some calls exist on one of the two only."""
    column = list(ARCHITECTURES).index(machine) + 1
    rows = [row.split() for row in table.split(",")]
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}


def checks_of_arguments(pid: int) -> dict[str, list[Check]]:
    """List what must hold for the arguments of the calls that are allowed under a condition."""
    # Before its version 3, Landlock lets a file that may only be read be emptied by opening it. So
    # O_TRUNC must come with O_WRONLY or O_RDWR, for which Landlock wants the right to write.
    access, truncated = os.O_ACCMODE | os.O_TRUNC, os.O_TRUNC
    modes = [0, 1, 2, 3, truncated | os.O_WRONLY, truncated | os.O_RDWR]
    return {
        "open": [(argument(1), access, modes)],
        "openat": [(argument(2), access, modes)],
        "clone": [(argument(0), CLONE_THREAD, [CLONE_THREAD])],
        "kill": [(argument(0), ALL_BITS, [pid])],
        "tgkill": [(argument(0), ALL_BITS, [pid])],
        "fcntl": [(argument(1), ALL_BITS, HARMLESS_FCNTLS)],
        "ioctl": [(argument(1), ALL_BITS, HARMLESS_IOCTLS)],
        # Its own limits may be read: the pointer to a limit to set is null, in both of its words.
        "prlimit64": [
            (argument(0), ALL_BITS, [0, pid]),
            (argument(2), ALL_BITS, [0]),
            (argument(2) + 4, ALL_BITS, [0]),
        ],
    }


def argument(index: int) -> int:
    """Give where the lower half of an argument lies in `struct seccomp_data`."""
    return 16 + 8 * index


def instructions(offset: int, bits: int, values: list[int]) -> Iterator[Instruction]:
    """Write one check: go on behind it if the word has one of the values, else deny the call."""
    yield LOAD, 0, 0, offset
    yield AND, 0, 0, bits
    for left in range(len(values), 0, -1):
        yield JUMP_EQUAL, left, 0, values[-left]
    yield RETURN, 0, 0, DENY | errno.EPERM


def install_filter(program: list[Instruction]) -> None:
    """Put this process under a filter of system calls for ever; needs NO_NEW_PRIVS."""
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in program))
    # struct sock_fprog, whose pointer is aligned
    header = ctypes.create_string_buffer(struct.pack("HP", len(program), ctypes.addressof(code)))
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(header))


if __name__ == "__main__":
    main(sys.argv[1:])
