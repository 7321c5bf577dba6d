"""All benchmarks: the settings of each, and what runs it."""

from collections.abc import Callable
from typing import Annotated, Any

import tyro

from nanoray.ops.bench_engine import EngineBench, bench_engine
from nanoray.ops.bench_kernels import KernelBench, bench_kernels
from nanoray.ops.bench_serve import ServeBench, bench_serve
from nanoray.ops.bench_stream import StreamBench, bench_stream
from nanoray.ops.bench_tokenizer import TokenizerBench, bench_tokenizer
from nanoray.ops.bench_train import TrainBench, bench_train

SETTINGS = (
    Annotated[TrainBench, tyro.conf.subcommand("train")]
    | Annotated[StreamBench, tyro.conf.subcommand("stream")]
    | Annotated[TokenizerBench, tyro.conf.subcommand("tokenizer")]
    | Annotated[KernelBench, tyro.conf.subcommand("kernels")]
    | Annotated[EngineBench, tyro.conf.subcommand("engine")]
    | Annotated[ServeBench, tyro.conf.subcommand("serve")]
)


BENCHMARKS: dict[type, Callable[[Any], str]] = {  # Any: each takes its own config
    TrainBench: bench_train,
    StreamBench: bench_stream,
    TokenizerBench: bench_tokenizer,
    KernelBench: bench_kernels,
    EngineBench: bench_engine,
    ServeBench: bench_serve,
}


def bench(config: Any) -> str:  # Any: one of the settings above
    """Run the benchmark of some settings."""
    return BENCHMARKS[type(config)](config)
