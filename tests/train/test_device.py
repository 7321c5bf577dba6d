import os
import resource
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch

from nanoray.train.device import (
    can_compile,
    own_device,
    peak_flops,
    prepare_process,
    training_dtype,
)
from tests.train.ranks import process_context

CPU = torch.device("cpu")
CPU_FACTS = Path("/proc/cpuinfo")


@pytest.mark.skipif(not CPU_FACTS.exists(), reason="only Linux says what its CPU can do")
def test_a_cpu_trains_in_bf16_only_where_it_multiplies_it():
    flags = set(CPU_FACTS.read_text().split())

    dtype = training_dtype(CPU)

    multiplies_bf16 = bool(flags & {"avx512_bf16", "amx_tile"})
    assert dtype == (torch.bfloat16 if multiplies_bf16 else torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_peak_of_a_cpu_is_one_that_a_computer_can_have(dtype):
    flops = peak_flops(CPU, dtype)

    assert 1e8 < flops < 1e15


def compiles_with(compiler: str) -> bool:
    os.environ["CXX"] = compiler
    return can_compile(CPU)


@pytest.mark.parametrize("compiler", ["/nonexistent/c++", "/bin/false"])
def test_a_cpu_without_a_compiler_that_runs_cannot_compile(compiler):
    # torch reads CXX once, so each compiler needs a process of its own.
    with ProcessPoolExecutor(1, mp_context=process_context()) as process:
        found = process.submit(compiles_with, compiler).result()

    assert found is False


@pytest.mark.skipif(shutil.which("g++") is None, reason="this machine has no g++")
def test_a_cpu_with_a_compiler_can_compile():
    with ProcessPoolExecutor(1, mp_context=process_context()) as process:
        found = process.submit(compiles_with, "g++").result()

    assert found is True


def faults_of_a_step() -> int:
    """Count the pages that the kernel hands out while blocks are freed and taken again."""
    prepare_process(1)

    def take_and_free() -> None:
        blocks = [torch.ones(2**24 // 4) for _ in range(12)]
        del blocks

    take_and_free()
    assert torch.get_num_threads() == 1
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        take_and_free()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(not CPU_FACTS.exists(), reason="only glibc is told to keep memory")
def test_freed_blocks_are_taken_again_without_asking_the_kernel():
    with ProcessPoolExecutor(1, mp_context=process_context()) as process:
        kept = process.submit(faults_of_a_step).result()

    # 12 blocks of 16 MB are 49,152 pages of 4 kB, ten times over: without, 490,000 were counted.
    assert kept < 5000


NO_GPU_HERE = pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use a GPU here")


@NO_GPU_HERE
@pytest.mark.parametrize("given", [None, "", "-1"])
def test_a_process_without_gpus_computes_on_its_cpu(
    given: str | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)

    assert own_device() == CPU


@NO_GPU_HERE
def test_a_process_with_a_gpu_that_torch_cannot_use_does_not_go_on_without(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")

    with pytest.raises(RuntimeError, match=r"was given a GPU .*CUDA_VISIBLE_DEVICES=0"):
        own_device()
