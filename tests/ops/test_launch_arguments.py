"""Settings as `serve run` gives them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nanoray.config import InputError
from nanoray.ops.launch_arguments import config_from
from tests.chat_run import save_chat_run
from tests.running import ROOT, Cluster, free_ports

BUILD = """
import sys
import httpx
import ray
from ray import serve
from serve_app import app

storage, port = sys.argv[1:]
app({"run": "chat", "storage": storage, "port": port})
is_connected = ray.is_initialized()
httpx.get(f"http://127.0.0.1:{port}/-/routes", trust_env=False)  # 503: no routes yet
ray.init(namespace="serve")
serve.shutdown()
print("connected" if is_connected else "built")
"""


def test_arguments_count_before_variables() -> None:
    config = config_from(
        {"run": "a", "port": "9000", "page": "false", "others": "b, c@5"},
        {"NANORAY_RUN": "z", "NANORAY_MAX_SEQUENCES": "8", "NANORAY_CACHE_GB": "1.5"},
    )

    assert (config.run, config.port, config.page) == ("a", 9000, False)
    assert (config.others, config.max_sequences, config.cache_gb) == (("b", "c@5"), 8, 1.5)


def test_variables_alone_are_enough() -> None:
    assert config_from({}, {"NANORAY_RUN": "z"}).run == "z"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "What is to be served"),
        ({"run": "a", "prot": "1"}, "prot is no setting. There are: .*port"),
        ({"run": "a", "port": "x"}, "port=x: Input should be a valid integer"),
        ({"run": "a", "page": "maybe"}, "page=maybe: Input should be a valid boolean"),
    ],
)
def test_what_cannot_be_read_is_named(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        config_from(arguments, {})


@pytest.mark.cluster
def test_the_application_is_built_and_has_its_port_before_serve_run_connects(
    ray_cluster: Cluster, tmp_path: Path
) -> None:
    save_chat_run(tmp_path)
    [port] = free_ports(1)

    done = subprocess.run(
        [sys.executable, "-c", BUILD, tmp_path, str(port)],
        cwd=ROOT,
        env={**os.environ, "RAY_AUTH_MODE": "token", **ray_cluster.environment()},
        capture_output=True,
        text=True,
        timeout=120,
    )

    # `serve run` connects by itself, with the --address and --runtime-env that it was given.
    assert done.stdout.split()[-1:] == ["built"], done.stderr
