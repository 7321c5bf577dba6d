"""The filter of system calls, run by an interpreter of its programs on both machines."""

import errno
import re
from pathlib import Path

import pytest

from nanoray.inference.sandbox_child import (
    ALLOWED,
    CONDITIONAL,
    Instruction,
    RefusedError,
    filter_program,
    syscalls,
)

PID = 4711
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
NO_RIGHT, NO_SUCH_CALL = f"errno {errno.EPERM}", f"errno {errno.ENOSYS}"

HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}

DANGEROUS = """
execve 59 221, execveat 322 281, fork 57 -, vfork 58 -, socket 41 198, socketpair 53 199,
connect 42 203, bind 49 200, sendto 44 206, sendmsg 46 211, ptrace 101 117, tkill 200 130,
rt_sigqueueinfo 129 138, rt_tgsigqueueinfo 297 240, process_vm_readv 310 270,
process_vm_writev 311 271, setsid 112 157, setpgid 109 154, mount 165 40, umount2 166 39,
unshare 272 97, setns 308 268, bpf 321 280, keyctl 250 219, add_key 248 217, request_key 249 218,
memfd_create 319 279, userfaultfd 323 282, setrlimit 160 164, perf_event_open 298 241,
prctl 157 167, seccomp 317 277, chroot 161 51, pivot_root 155 41, truncate 76 45, chmod 90 -,
fchmod 91 52, fchmodat 268 53, chown 92 -, fchown 93 55, fchownat 260 54, setxattr 188 5,
utimensat 280 88, link 86 -, linkat 265 37, mknod 133 -, mknodat 259 33, shmget 29 194,
mq_open 240 180, open_by_handle_at 304 265, name_to_handle_at 303 264, kexec_load 246 104,
init_module 175 105, reboot 169 142, sched_setaffinity 203 122, capset 126 91, setuid 105 146
"""
RECENT = """
clone3 435 435, io_uring_setup 425 425, io_uring_enter 426 426, io_uring_register 427 427,
pidfd_send_signal 424 424, pidfd_open 434 434, pidfd_getfd 438 438, openat2 437 437,
process_madvise 440 440, memfd_secret 447 447, fchmodat2 452 452, of_the_future 999 999
"""


def outcome(program: list[Instruction], architecture: int, number: int, *arguments: int) -> str:
    """Interpret a filter for one system call, as the kernel documents its instructions."""
    words = [number, architecture, 0, 0]
    for argument in (*arguments, *[0] * 6)[:6]:
        words += [argument & 0xFFFFFFFF, argument >> 32]
    position, accumulator = 0, 0
    while True:
        code, if_true, if_false, constant = program[position]
        position += 1
        match code:
            case 0x20:
                accumulator = words[constant // 4]
            case 0x54:
                accumulator &= constant
            case 0x15:
                position += if_true if accumulator == constant else if_false
            case 0x35:
                position += if_true if accumulator >= constant else if_false
            case 0x06:
                names = {0x7FFF0000: "allowed", 0x80000000: "killed"}
                return names.get(constant, f"errno {constant & 0xFFFF}")


def call(machine: str, number: int, *arguments: int) -> str:
    """Give what becomes of a system call of a sandbox's process."""
    return outcome(filter_program(machine, PID), MACHINES[machine], number, *arguments)


def kernel_numbers(machine: str) -> dict[str, int]:
    """Read the numbers of system calls from the kernel's headers."""
    if not HEADERS[machine].exists():
        pytest.skip(f"needs {HEADERS[machine]}")
    lines = HEADERS[machine].read_text()
    found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", lines)
    numbers = {name: int(number) for name, number in found}
    if machine == "aarch64":
        numbers["newfstatat"] = numbers["fstatat"]
    return numbers


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("table", [ALLOWED, CONDITIONAL, DANGEROUS], ids=["all", "some", "none"])
def test_the_numbers_are_those_of_the_kernel(machine: str, table: str) -> None:
    numbers = kernel_numbers(machine)

    ours = syscalls(table, machine)

    assert ours == {name: numbers[name] for name in ours}


@pytest.mark.parametrize("machine", MACHINES)
def test_what_computes_reads_and_writes_is_allowed(machine: str) -> None:
    numbers = syscalls(ALLOWED, machine)

    outcomes = {name: call(machine, number) for name, number in numbers.items()}

    assert set(outcomes.values()) == {"allowed"}


@pytest.mark.parametrize("machine", MACHINES)
def test_what_reaches_beyond_the_process_is_denied(machine: str) -> None:
    outcomes = {name: call(machine, n) for name, n in syscalls(DANGEROUS, machine).items()}

    assert {name: got for name, got in outcomes.items() if got != NO_RIGHT} == {}


@pytest.mark.parametrize("machine", MACHINES)
def test_recent_and_future_calls_do_not_exist(machine: str) -> None:
    outcomes = {name: call(machine, n) for name, n in syscalls(RECENT, machine).items()}

    assert set(outcomes.values()) == {NO_SUCH_CALL}


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("clone", (0x003D0F00,), "allowed"),  # pthread_create's flags
        ("clone", (0x01200011,), NO_RIGHT),  # fork's
        ("clone", (0x00004111,), NO_RIGHT),  # vfork's
        ("kill", (PID, 15), "allowed"),
        ("kill", (PID + 1, 9), NO_RIGHT),
        ("kill", (0xFFFFFFFF, 9), NO_RIGHT),
        ("tgkill", (PID, PID, 6), "allowed"),
        ("tgkill", (1, 1, 6), NO_RIGHT),
        ("fcntl", (3, 4, 0o4000), "allowed"),  # F_SETFL
        ("fcntl", (3, 8, 1), NO_RIGHT),  # F_SETOWN
        ("fcntl", (3, 1033, 15), NO_RIGHT),  # F_ADD_SEALS
        ("ioctl", (0, 0x5401), "allowed"),  # TCGETS
        ("ioctl", (0, 0x5412), NO_RIGHT),  # TIOCSTI
        ("prlimit64", (0, 7, 0, 0x7F0000001000), "allowed"),
        ("prlimit64", (PID, 7, 0, 0x7F0000001000), "allowed"),
        ("prlimit64", (PID + 1, 7, 0, 0x7F0000001000), NO_RIGHT),
        ("prlimit64", (0, 7, 0x7F0000001000, 0), NO_RIGHT),
        ("prlimit64", (0, 7, 0x100000000, 0), NO_RIGHT),  # a pointer whose lower half is null
        ("openat", (3, 0, 0), "allowed"),
        ("openat", (3, 0, 0o1101), "allowed"),  # "w"
        ("openat", (3, 0, 0o1002), "allowed"),
        ("openat", (3, 0, 0o1000), NO_RIGHT),  # emptied, though only opened to be read
        ("openat", (3, 0, 0o1003), NO_RIGHT),
    ],
)
def test_a_call_is_allowed_for_some_arguments(
    machine: str, name: str, arguments: tuple[int, ...], expected: str
) -> None:
    number = syscalls(CONDITIONAL, machine)[name]

    got = call(machine, number, *arguments)

    assert got == expected


def test_open_is_as_openat_is() -> None:
    outcomes = [call("x86_64", 2, 0, flags) for flags in (0, 0o1101, 0o1000)]

    assert outcomes == ["allowed", "allowed", NO_RIGHT]


def test_calls_by_another_convention_are_of_no_use() -> None:
    program = filter_program("x86_64", PID)

    of_32_bits = outcome(program, 0x40000003, 11)  # i386: execve
    of_x32 = outcome(program, MACHINES["x86_64"], 0x40000000 + 520)  # x32: execve

    assert (of_32_bits, of_x32) == ("killed", NO_SUCH_CALL)


def test_a_machine_without_a_list_is_refused() -> None:
    with pytest.raises(RefusedError, match="no list of system calls for riscv64"):
        filter_program("riscv64", PID)
