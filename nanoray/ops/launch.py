"""Starting the application, telling where it is, and ending it so that no answer is cut off."""

import logging
import signal
import threading
import time
import webbrowser
from types import FrameType

from ray import serve
from ray.serve.config import HTTPOptions

from nanoray.cluster import connection
from nanoray.cluster.placement import for_lasting
from nanoray.config import InputError
from nanoray.serve.deployment import APPLICATION, DOOR, build_application, replica_share
from nanoray.serve.serve_config import ServeConfig
from nanoray.train.checkpoint_name import find_model

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 60.0
"""How long the answers in the making may take when the server is told to stop."""


def prepare(config: ServeConfig) -> serve.Application:
    """Check that everything is there to be served, and put the application together.

    Raises:
        InputError: no such checkpoint.
    """
    storage = connection.absolute_address(config.storage or "runs")
    for name in config.names():
        find_model(storage, name)
    share = replica_share(config, connection.cluster_total())
    return build_application(config, storage, share, for_lasting())


def listen(config: ServeConfig) -> None:
    """Start Serve on the host and port of the settings; one that is there already keeps its own."""
    serve.start(http_options=HTTPOptions(host=config.host, port=config.port))


def launch(config: ServeConfig) -> None:
    """Serve until Ctrl-C or SIGTERM, then let the answers in the making end.

    Raises:
        InputError: no such checkpoint, or the port is taken.
    """
    stop = threading.Event()

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        stop.set()

    logging.getLogger("ray.serve").setLevel(logging.ERROR)  # it tells of each step of its own
    outlives_us = connection.known_address() is not None
    connection.connect()
    application = prepare(config)
    listen(config)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask_to_stop)
    try:
        serve.run(application, name=APPLICATION, route_prefix="/", blocking=False)
    except RuntimeError as error:
        raise InputError(f"The server did not start: {error}") from error
    tell_addresses(config)
    if config.open_page:
        webbrowser.open(f"{config.own_url()}/chat")
    while not stop.wait(1.0):
        pass
    if not outlives_us:
        drain()
    delete()


def tell_addresses(config: ServeConfig) -> None:
    """Log where the server is."""
    address = config.own_url()
    logger.info("API   %s/v1", address)
    if config.page:
        logger.info("page  %s/chat", address)
    logger.info("Ctrl-C lets the answers in the making end, and stops it")


def delete() -> None:
    """Have Serve end the application, each replica after its last answer; waits until all ended.

    Serve goes on with it when this process is killed meanwhile, as `ray job stop` does after 3 s.
    """
    # The blocking way gives up after a minute, with an error.
    serve.delete(APPLICATION, _blocking=False)
    while APPLICATION in serve.status().applications:
        time.sleep(1)


def drain() -> None:
    """Let the answers in the making end; new requests are refused meanwhile."""
    handle = serve.get_deployment_handle(DOOR, APPLICATION)
    deadline = time.monotonic() + DRAIN_SECONDS
    while time.monotonic() < deadline:
        left = handle.drain.remote().result()
        if not left:
            return
        logger.info("%d answers are in the making", left)
        time.sleep(1)
    logger.warning("answers that took longer than %.0f s were cut off", DRAIN_SECONDS)
