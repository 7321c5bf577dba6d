"""The head of a cluster, asked before Ray is: Ray tries for minutes where no cluster can answer."""

import os
import socket
from typing import Any

import grpc
from ray._common.tls_utils import load_certs_from_env
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from nanoray.config import InputError

CONNECT_TIMEOUT_SECONDS = 10
FIRST_SECONDS = 1.0
"""For a first answer; a head gives it in milliseconds."""
MEET_SECONDS = 8.0
"""For the other side to speak gRPC at all."""
ASK_SECONDS = 5.0
"""For the head to answer a call."""
CLIENT = "ray://"


class ClusterError(InputError):
    """A cluster that cannot be worked on from here; the text ends with the remedy."""


class TokenError(ClusterError):
    """A cluster that does not take the token of this machine."""


class VersionError(ClusterError):
    """A cluster with another Ray or Python than this machine."""


def check_answers(address: str) -> None:
    """Check, in ten seconds or so, that a Ray cluster answers at an address.

    Args:
        address: HOST:PORT, with or without ray://; Ray's own words "auto" and "local" pass.

    Raises:
        ClusterError: it is no such address, nobody listens there, or what does is no cluster.
    """
    if address in ("auto", "local"):
        return
    if address.startswith(("http://", "https://")):
        raise ClusterError(
            f"{address} is the address of a job server, not of a cluster. Submit the job there "
            "with `ray job submit -- python jobs/...`, or give RAY_ADDRESS the HOST:PORT of the "
            "cluster."
        )
    host, _, port = address.removeprefix(CLIENT).rpartition(":")
    if not host and address.startswith(CLIENT):  # Ray knows the usual port
        return
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ClusterError(
            f"{address!r} is no address of a Ray cluster. Give RAY_ADDRESS as HOST:PORT, as "
            "ray start prints it, or unset it to work here."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_SECONDS).close()
    except (OSError, ValueError) as error:  # UnicodeError for a host that cannot be a name
        raise no_answer(address) from error
    if not address.startswith(CLIENT) and not is_head(address):
        raise ClusterError(
            f"What listens at {address} does not answer as a Ray cluster does. Give RAY_ADDRESS "
            "the HOST:PORT that ray start prints, or unset it to work here."
        )


def no_answer(address: str) -> ClusterError:
    """Say that nobody answers."""
    return ClusterError(
        f"No Ray cluster answers at {address}. Start one, or unset RAY_ADDRESS to work here."
    )


def token_refused(address: str) -> TokenError:
    """Say that the cluster is there, and does not let us in."""
    return TokenError(
        f"The Ray cluster at {address} did not take the token of this machine. Copy the head's "
        "~/.ray/auth_token here; for a cluster without tokens, set RAY_AUTH_MODE=disabled."
    )


def versions_differ(told: str) -> VersionError:
    """Say that the cluster runs something else than this machine.

    Args:
        told: what Ray says of it, over several lines.
    """
    return VersionError(
        f"This machine and the cluster differ: {' '.join(told.split()).rstrip('.')}. Install the "
        "same Ray and Python on both."
    )


def is_head(address: str) -> bool:
    """Say whether a head is there; one that is merely slow to answer is taken for one."""
    code = ask_without_token(address, FIRST_SECONDS)
    if code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return code is not grpc.StatusCode.UNIMPLEMENTED
    channel = open_channel(address)
    try:
        grpc.channel_ready_future(channel).result(timeout=MEET_SECONDS)
    except grpc.FutureTimeoutError:
        return False
    finally:
        channel.close()
    return True


def refuses_strangers(address: str) -> bool | None:
    """Say whether the head refuses who has no token; None if it cannot be asked."""
    code = ask_without_token(address)
    return {grpc.StatusCode.OK: False, grpc.StatusCode.UNAUTHENTICATED: True}.get(code)


def ask_without_token(address: str, seconds: float = ASK_SECONDS) -> grpc.StatusCode:
    """Ask the head for nothing in particular, as a stranger; gives how that ended."""
    messages: Any = gcs_service_pb2  # Any: generated, without types
    channel = open_channel(address)
    head = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
    try:
        head.CheckAlive(messages.CheckAliveRequest(), timeout=seconds)
    except grpc.RpcError as error:
        return error.code()
    finally:
        channel.close()
    return grpc.StatusCode.OK


def open_channel(address: str) -> grpc.Channel:
    """Open a channel as Ray does: past any proxy of the environment, and with TLS where it is."""
    options = [("grpc.enable_http_proxy", 0)]
    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
        return grpc.insecure_channel(address, options)
    chain, key, authority = load_certs_from_env()
    return grpc.secure_channel(
        address,
        grpc.ssl_channel_credentials(authority, private_key=key, certificate_chain=chain),
        options,
    )
