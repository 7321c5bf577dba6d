"""What is served, where, and by how many engines."""

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass

from nanoray.config import InputError, require_checkpoint_name, require_positive

KEYS_VARIABLE = "NANORAY_API_KEYS"


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Serve the newest checkpoint of a run: an OpenAI API, and a chat page."""

    run: str
    """RUN, RUN/stage or RUN/stage@step; without a step, newer checkpoints are taken up."""
    others: tuple[str, ...] = ()
    """More checkpoints that can be chosen and compared, named in the same way."""
    storage: str | None = None
    """Where runs are kept: a folder or an address; by default ./runs."""
    host: str = "127.0.0.1"
    """Address to listen on; any but this machine's own needs API keys in NANORAY_API_KEYS."""
    port: int = 8000
    """Port of the API and the page."""
    num_replicas: str = "1"
    """Engines per model: a number, or a range as 1:4, within which they follow the load."""
    max_sequences: int = 32
    """Answers that one engine computes at once."""
    max_waiting: int = 32
    """Answers that may wait for each engine; whoever comes then is told to come again."""
    step_tokens: int = 512
    """Most tokens of one step of an engine; long prompts take several."""
    cache_gb: float | None = None
    """KV cache of one engine; by default enough for `max_sequences` of full length, if it fits."""
    dtype: str | None = None
    """bfloat16 or float32; by default what the device is fast in."""
    cpus_per_replica: int | None = None
    """CPUs of each engine; by default all but one of this machine, shared by the engines."""
    node_labels: str | None = None
    """Engines only on nodes with these labels, as in ray.io/node-group=chat. An autoscaler brings
    such nodes only if the `labels` of their node type list them."""
    poll_seconds: float = 10.0
    """How often newer checkpoints are looked for."""
    stuck_seconds: float = 30.0
    """An engine that makes no step for so long is replaced."""
    cors_origins: tuple[str, ...] = ()
    """Web pages of these origins may call the API from a browser."""
    open_page: bool = False
    """Open the chat page in a browser when it is there."""
    page: bool = True
    """Serve the chat page too."""

    def __post_init__(self) -> None:
        """Refuse what cannot work, and what would be open to everyone.

        Raises:
            InputError: a value that cannot be used.
        """
        require_checkpoint_name("--run", self.run)
        for other in self.others:
            require_checkpoint_name("--others", other)
        for name in ("port", "max_sequences", "step_tokens", "poll_seconds", "stuck_seconds"):
            require_positive(name, getattr(self, name), least=0 if name.endswith("ds") else 1)
        require_positive("max_waiting", self.max_waiting, least=0)
        if self.cpus_per_replica is not None:
            require_positive("cpus_per_replica", self.cpus_per_replica)
        if self.dtype not in (None, "bfloat16", "float32"):
            raise InputError(f"--dtype {self.dtype} is unknown. Choose bfloat16 or float32.")
        if self.step_tokens < self.max_sequences:
            raise InputError(
                f"--step-tokens {self.step_tokens} is less than --max-sequences "
                f"{self.max_sequences}, and each answer takes one token of a step. Raise it."
            )
        self.replica_range()
        self.labels()
        if not is_loopback(self.host) and not api_keys():
            raise InputError(
                f"--host {self.host} would be open to everyone. Set {KEYS_VARIABLE} to one or more "
                "keys, with commas between them, or leave --host out."
            )

    def replica_range(self) -> tuple[int, int]:
        """Give least and most engines per model."""
        least, _, most = self.num_replicas.partition(":")
        try:
            bounds = int(least), int(most or least)
        except ValueError as error:
            raise InputError(
                f"--num-replicas {self.num_replicas} is neither a number nor a range as 1:4."
            ) from error
        if not 1 <= bounds[0] <= bounds[1]:
            raise InputError(f"--num-replicas {self.num_replicas} must begin with 1 or more.")
        return bounds

    def labels(self) -> dict[str, str]:
        """Give the labels of the nodes on which engines may run; empty for any node."""
        pairs = [part.partition("=") for part in (self.node_labels or "").split(",") if part]
        labels = {name.strip(): value.strip() for name, _, value in pairs}
        if not all(name and value for name, value in labels.items()):
            raise InputError(
                f"--node-labels {self.node_labels} has a part that is not NAME=VALUE. Give them as "
                "in ray.io/node-group=chat,zone=a."
            )
        return labels

    def own_url(self) -> str:
        """Give the address by which a process on the serving machine reaches the server."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::", "localhost") else self.host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def names(self) -> list[str]:
        """Give what is served, the first one first."""
        return list(dict.fromkeys((self.run, *self.others)))


def api_keys(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Read the API keys: from the environment, because others can read a command line."""
    return [key.strip() for key in environment.get(KEYS_VARIABLE, "").split(",") if key.strip()]


def is_loopback(host: str) -> bool:
    """Say whether an address reaches this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
