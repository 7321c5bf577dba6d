"""What nvidia-smi and the kernel's log tell of the GPUs of a machine."""

import re
import subprocess
from dataclasses import dataclass

SMI_FIELDS = (
    "index",
    "name",
    "driver_version",
    "temperature.gpu",
    "clocks.sm",
    "clocks.max.sm",
    "clocks_event_reasons.active",
    "ecc.errors.uncorrected.volatile.total",
)
SMI_FIELDS_BEFORE_535 = tuple(
    name.replace("clocks_event_reasons", "clocks_throttle_reasons") for name in SMI_FIELDS
)
SMI_SECONDS = 20.0

THROTTLE_REASONS = {
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
"""Bits of nvmlClocksEventReasons (nvml.h) that are no part of normal work: an idle GPU and one at
its power limit have others."""

HARDWARE_XIDS = {48, 62, 64, 74, 79, 92, 94, 95, 119, 120, 140}
"""Memory, NVLink, bus and firmware (NVIDIA's list of Xid errors); the others, such as 13 and 31,
are errors of programs."""
LOG_COMMANDS = (
    ("dmesg",),
    ("sudo", "-n", "dmesg"),
    ("journalctl", "--quiet", "-k", "-b"),
)
XID = re.compile(r"NVRM: Xid \(PCI:([0-9A-Fa-f:.]+)\): (\d+)")


@dataclass(frozen=True)
class Gpu:
    """One GPU as nvidia-smi describes it; None for what it does not say."""

    index: int
    name: str
    driver: str
    celsius: int | None
    clock_mhz: int | None
    max_clock_mhz: int | None
    throttled: tuple[str, ...]
    """Why its clocks are held down."""
    ecc_errors: int | None
    """That could not be corrected, since the driver was loaded."""


@dataclass(frozen=True)
class GpuReport:
    """All GPUs of a machine."""

    gpus: tuple[Gpu, ...] = ()
    problems: tuple[str, ...] = ()
    """Lines of nvidia-smi that describe no GPU: one that has fallen off the bus, for instance."""
    xids: tuple[str, ...] | None = ()
    """Errors of the driver in the kernel's log, as "Xid 79 of 0000:3b:00"; None where the log could
    not be read."""


def parse_smi(output: str) -> GpuReport:
    """Read what `nvidia-smi --query-gpu=... --format=csv,noheader,nounits` printed."""
    gpus, problems = [], []
    for line in filter(None, map(str.strip, output.splitlines())):
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != len(SMI_FIELDS) or number(cells[0]) is None:
            problems.append(line)
            continue
        index, name, driver, celsius, clock, most, reasons, ecc = cells
        gpus.append(
            Gpu(
                index=int(index),
                name=name,
                driver=driver,
                celsius=number(celsius),
                clock_mhz=number(clock),
                max_clock_mhz=number(most),
                throttled=throttle_reasons(reasons),
                ecc_errors=number(ecc),
            )
        )
    return GpuReport(tuple(gpus), tuple(problems))


def number(cell: str) -> int | None:
    """Read a whole number; None for "[N/A]", "[Not Supported]" and the like."""
    return int(cell) if cell.isdecimal() else None


def throttle_reasons(cell: str) -> tuple[str, ...]:
    """Name what holds the clocks down, from a bit mask such as 0x0000000000000040."""
    try:
        mask = int(cell, 16)
    except ValueError:
        return ()
    return tuple(reason for bit, reason in THROTTLE_REASONS.items() if mask & bit)


def parse_xids(log: str) -> tuple[str, ...]:
    """Find the driver's errors of hardware in the kernel's log, each once."""
    found = [(gpu, code) for gpu, code in XID.findall(log) if int(code) in HARDWARE_XIDS]
    return tuple(dict.fromkeys(f"Xid {code} of {gpu}" for gpu, code in found))


def ask_smi() -> GpuReport:
    """Describe the GPUs of this machine; without nvidia-smi, say that there is none."""
    for fields in (SMI_FIELDS, SMI_FIELDS_BEFORE_535):
        try:
            done = subprocess.run(
                ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"],
                capture_output=True,
                text=True,
                timeout=SMI_SECONDS,
                check=False,
            )
        except FileNotFoundError:
            return GpuReport(problems=("there is no nvidia-smi",))
        except subprocess.TimeoutExpired:
            return GpuReport(problems=(f"nvidia-smi did not answer for {SMI_SECONDS:.0f} s",))
        if "not a valid field" not in done.stdout + done.stderr:
            break
    found = parse_smi(done.stdout)
    log = kernel_log()
    return GpuReport(found.gpus, found.problems, None if log is None else parse_xids(log))


def kernel_log() -> str | None:
    """Read the kernel's log; None if this user may not, as on Ubuntu unless sudo asks nothing."""
    for command in LOG_COMMANDS:
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=5.0, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        # journalctl succeeds with nothing where the user may read no more than an own journal.
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout
    return None
