import stat
from pathlib import Path

import pytest

from nanoray.ops.doctor_gpu import SMI_FIELDS, ask_smi, kernel_log, parse_smi, parse_xids

HEALTHY = """\
0, NVIDIA H100 80GB HBM3, 550.90.07, 31, 345, 1980, 0x0000000000000001, 0
1, NVIDIA H100 80GB HBM3, 550.90.07, 34, 1980, 1980, 0x0000000000000004, 0
"""
AILING = """\
0, NVIDIA H100 80GB HBM3, 550.90.07, 91, 1140, 1980, 0x0000000000000060, 3
Unable to determine the device handle for GPU1: 0000:3B:00.0: Unknown Error
2, NVIDIA GeForce RTX 3090, 550.90.07, 40, 210, 2100, [N/A], [N/A]
"""
KERNEL_LOG = """\
[  812.1] NVRM: loading NVIDIA UNIX x86_64 Kernel Module  550.90.07
[ 9081.7] NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', GPU has fallen off the bus.
[ 9081.8] NVRM: Xid (PCI:0000:3b:00): 79, pid=4211, GPU has fallen off the bus.
[ 9090.0] NVRM: Xid (PCI:0000:86:00): 31, pid=4212, MMU Fault of a program
[ 9100.0] NVRM: Xid (PCI:0000:86:00): 94, pid=4212, Contained: SM (0x1)
"""


def test_idle_gpus_and_those_at_their_power_limit_are_not_held_down():
    report = parse_smi(HEALTHY)

    assert report.problems == ()
    assert [(gpu.index, gpu.celsius, gpu.throttled) for gpu in report.gpus] == [
        (0, 31, ()),
        (1, 34, ()),
    ]
    assert {gpu.name for gpu in report.gpus} == {"NVIDIA H100 80GB HBM3"}


def test_heat_errors_and_a_lost_gpu_are_read():
    report = parse_smi(AILING)

    hot, consumer = report.gpus
    assert hot.throttled == ("software thermal slowdown", "hardware thermal slowdown")
    assert (hot.ecc_errors, hot.clock_mhz, hot.max_clock_mhz) == (3, 1140, 1980)
    assert (consumer.index, consumer.ecc_errors, consumer.throttled) == (2, None, ())
    assert report.problems == (
        "Unable to determine the device handle for GPU1: 0000:3B:00.0: Unknown Error",
    )


def test_errors_of_hardware_are_found_once_each_and_those_of_programs_not():
    assert parse_xids(KERNEL_LOG) == ("Xid 79 of 0000:3b:00", "Xid 94 of 0000:86:00")


def put_program(monkeypatch, folder: Path, script: str, name: str = "nvidia-smi") -> None:
    """Put a program of our own first on the path."""
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}")
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_an_older_driver_is_asked_by_its_own_names(monkeypatch, tmp_path: Path):
    old = """case "$*" in
*clocks_event_reasons*) echo 'Field "clocks_event_reasons.active" is not a valid field to query.'
  exit 2;;
*) echo "0, NVIDIA A100-SXM4-80GB, 470.82.01, 30, 210, 1410, 0x0000000000000001, 0";;
esac
"""
    put_program(monkeypatch, tmp_path, old)

    report = ask_smi()

    assert [gpu.driver for gpu in report.gpus] == ["470.82.01"]
    assert report.problems == ()


def test_without_nvidia_smi_that_is_what_is_reported(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))

    report = ask_smi()

    assert report.gpus == ()
    assert report.problems == ("there is no nvidia-smi",)


REFUSED = "echo 'dmesg: read kernel buffer failed: Operation not permitted' >&2; exit 1\n"
READ = "echo 'NVRM: Xid (PCI:0000:3b:00): 79, pid=1'\n"
FOR_ROOT = f'[ "$1 $2" = "-n dmesg" ] || exit 9\n{READ}'


@pytest.mark.parametrize(
    ("dmesg", "sudo", "journalctl"),
    [(READ, REFUSED, REFUSED), (REFUSED, FOR_ROOT, REFUSED), (REFUSED, REFUSED, READ)],
)
def test_the_log_of_the_kernel_is_read_in_whatever_way_this_user_may(
    monkeypatch, tmp_path: Path, dmesg: str, sudo: str, journalctl: str
):
    for name, script in (("dmesg", dmesg), ("sudo", sudo), ("journalctl", journalctl)):
        put_program(monkeypatch, tmp_path, script, name)

    assert parse_xids(kernel_log() or "") == ("Xid 79 of 0000:3b:00",)


@pytest.mark.parametrize("journalctl", [REFUSED, ""])
def test_a_log_of_the_kernel_that_may_not_be_read_is_not_taken_for_an_empty_one(
    monkeypatch, tmp_path: Path, journalctl: str
):
    for name, script in (("dmesg", REFUSED), ("sudo", REFUSED), ("journalctl", journalctl)):
        put_program(monkeypatch, tmp_path, script, name)
    put_program(monkeypatch, tmp_path, f"echo '{HEALTHY.splitlines()[0]}'\n")

    assert kernel_log() is None
    assert ask_smi().xids is None


def test_a_line_has_a_cell_for_each_field():
    assert len(HEALTHY.splitlines()[0].split(",")) == len(SMI_FIELDS)
