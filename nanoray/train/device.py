"""What a device can do: its number format for training, and the most it could compute."""

import ctypes
import os
import time

import torch

from nanoray.model.scaling import gpu_peak_flops

NO_GPUS = ("", "-1", "NoDevFiles")
"""Values of CUDA_VISIBLE_DEVICES, the last of them a common one of schedulers."""
MEASURED_SIZE = 1024
MEASURED_SECONDS = 1.0
"""The best of so many products counts: on a shared machine most of them are disturbed."""

MALLOPT_TRIM_THRESHOLD, MALLOPT_TOP_PAD, MALLOPT_MMAP_THRESHOLD = -1, -2, -3
KEPT_BYTES = 2**27
LARGEST_KEPT_BLOCK = 2**25
"""glibc takes no larger threshold."""


def own_device() -> torch.device:
    """Give the first GPU of this process; the CPU where it was given none.

    Raises:
        RuntimeError: it was given one, which torch cannot use.
    """
    return check_device(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def check_device(device: torch.device) -> torch.device:
    """Give the device back, unless it is the CPU of a process that was given GPUs.

    Work that was placed on a GPU would go on a hundred times slower, and nobody would know why.

    Raises:
        RuntimeError: torch cannot use them.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "").strip()
    if device.type == "cuda" or given in NO_GPUS:
        return device
    try:
        torch.zeros(1, device="cuda")
        why = "it says that there is none"
    except (RuntimeError, AssertionError) as error:  # the latter where torch has no CUDA at all
        why = str(error).partition("\n")[0]
    raise RuntimeError(
        f"This process was given a GPU (CUDA_VISIBLE_DEVICES={given}) which torch "
        f"{torch.__version__} cannot use: {why}. Install a build of torch for the node's driver, "
        "leave the node out, or unset the variable to compute on the CPU."
    )


def training_dtype(device: torch.device) -> torch.dtype:
    """Give bf16 where the hardware multiplies it, else fp32."""
    return torch.bfloat16 if multiplies_bf16(device) else torch.float32


def multiplies_bf16(device: torch.device) -> bool:
    """Say whether the hardware multiplies bf16; elsewhere that is slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Give the FLOP/s against which utilization is counted.

    For a known GPU its data sheet (bf16); for all else the best of a few large matrix products.
    """
    if device.type == "cuda" and dtype == torch.bfloat16:
        known = gpu_peak_flops(torch.cuda.get_device_name(device))
        if known is not None:
            return known
    a = torch.randn(MEASURED_SIZE, MEASURED_SIZE, device=device).to(dtype)
    best, end = 0.0, time.perf_counter() + MEASURED_SECONDS
    while time.perf_counter() < end:
        began = time.perf_counter()
        (a @ a).sum().item()
        best = max(best, 2 * MEASURED_SIZE**3 / (time.perf_counter() - began))
    return best


def prepare_process(num_threads: int | None = None) -> None:
    """Let this process compute with so many threads, and keep the memory that its tensors free.

    Args:
        num_threads: of torch, in the calling thread; None for torch's own choice.
    """
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Let glibc keep what tensors on the CPU have freed, instead of giving it back to the kernel.

    Each step frees and takes the same blocks; the kernel would clear their pages every time, which
    took a tenth of a training step, and a third of a decode step (docs/measurements.md). Other
    allocators are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MALLOPT_MMAP_THRESHOLD, LARGEST_KEPT_BLOCK)
        mallopt(MALLOPT_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(MALLOPT_TOP_PAD, KEPT_BYTES)


def can_compile(device: torch.device) -> bool:
    """Say whether torch.compile can work here: on a CPU it needs a C++ compiler."""
    if device.type == "cuda":
        return True
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


def peak_memory(device: torch.device) -> int:
    """Give the most memory this process has used: of the GPU, or resident on a CPU, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
