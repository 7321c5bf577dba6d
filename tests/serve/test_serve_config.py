"""Settings of a server."""

from typing import Any

import pytest

from nanoray.config import InputError
from nanoray.serve.serve_config import KEYS_VARIABLE, ServeConfig, api_keys, is_loopback


@pytest.mark.parametrize(
    ("given", "bounds"), [("1", (1, 1)), ("3", (3, 3)), ("1:4", (1, 4)), ("2:2", (2, 2))]
)
def test_replicas_are_a_number_or_a_range(given: str, bounds: tuple[int, int]) -> None:
    assert ServeConfig(run="r", num_replicas=given).replica_range() == bounds


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_replicas": "x"}, "--num-replicas x is neither a number nor a range"),
        ({"num_replicas": "0"}, "--num-replicas 0 must begin with 1 or more"),
        ({"num_replicas": "4:2"}, "--num-replicas 4:2"),
        ({"dtype": "float16"}, "--dtype float16 is unknown"),
        ({"step_tokens": 8}, "--step-tokens 8 is less than --max-sequences 32"),
        ({"port": 0}, "--port 0"),
        ({"max_sequences": 0}, "--max-sequences 0"),
        ({"max_waiting": -1}, "--max-waiting -1"),
        ({"cpus_per_replica": 0}, "--cpus-per-replica 0"),
        ({"run": "a*/sft@3"}, r"--run 'a\*' cannot name a folder"),
        ({"others": ("b", "x::y")}, "--others 'x::y' cannot name a folder"),
    ],
)
def test_what_cannot_work_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        ServeConfig(**{"run": "r", **fields})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "example.org"])
def test_a_public_address_needs_a_key(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEYS_VARIABLE, raising=False)
    with pytest.raises(InputError, match="open to everyone"):
        ServeConfig(run="r", host=host)

    monkeypatch.setenv(KEYS_VARIABLE, "secret")
    assert ServeConfig(run="r", host=host).host == host


def test_keys_are_read_from_the_environment_alone() -> None:
    assert api_keys({KEYS_VARIABLE: " a, b ,,"}) == ["a", "b"]
    assert api_keys({}) == []


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("localhost", "http://127.0.0.1:8000"),
        ("::1", "http://[::1]:8000"),
    ],
)
def test_a_server_knows_its_own_address(host: str, url: str) -> None:
    assert ServeConfig(run="r", host=host).own_url() == url


def test_each_checkpoint_is_served_once() -> None:
    config = ServeConfig(run="a", others=("b", "a", "c@5"))

    assert config.names() == ["a", "b", "c@5"]


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("localhost", True), ("127.0.0.9", True), ("::1", True), ("0.0.0.0", False), ("x", False)],
)
def test_loopback_is_known(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_engines_may_be_kept_to_labelled_nodes():
    labelled = ServeConfig(run="r", node_labels="ray.io/node-group=chat, zone=a")

    assert labelled.labels() == {"ray.io/node-group": "chat", "zone": "a"}
    assert ServeConfig(run="r").labels() == {}
    with pytest.raises(InputError, match="--node-labels chat has a part that is not NAME=VALUE"):
        ServeConfig(run="r", node_labels="chat")
