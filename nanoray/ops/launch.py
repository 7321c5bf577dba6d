"""Starting the application, telling where it is, and ending it so that no answer is cut off."""

import logging
import math
import signal
import threading
import time
import uuid
import webbrowser
from types import FrameType

from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus, LoggingConfig

from nanoray import logs
from nanoray.cluster import connection
from nanoray.cluster.placement import for_lasting
from nanoray.config import InputError
from nanoray.serve import proxy_headers
from nanoray.serve.deployment import APPLICATION, DOOR, build_application, replica_share
from nanoray.serve.remote_engine import Handle
from nanoray.serve.serve_config import ServeConfig
from nanoray.train.checkpoint_name import find_model

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 60.0
"""How long the answers in the making may take when a server on this machine is told to stop."""
DOOR_SECONDS = 10.0
"""How long the server may take to say how many they are."""
FORCED = {"RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1"}
"""An engine that is stuck will not end its answers, however long it may take for them."""
SERVER = {**connection.SMALL_MACHINE, "RAY_worker_niceness": "0"}
"""Settings for starting Ray on a machine that serves.

Ray gives its workers the last priority but four: too near the end for an engine to stand behind
those who ask it, and no better than that of a run which trains beside it.
"""
LAUNCHER = uuid.uuid4().hex
"""Names this process to the server, which does not end for it once another has started it anew."""
CONTROLLER = {"runtime_env": {"env_vars": {**FORCED, **proxy_headers.SETTINGS}}}


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
    """Start Serve on the host and port of the settings.

    A cluster has one Serve, which cannot move: one that serves nothing is started anew.

    Raises:
        InputError: it serves something, on another host or port.
    """
    start_serve(config)
    client = _get_global_client()
    assert client is not None, "just started"
    there = client.http_config
    if (there.host, there.port) == (config.host, config.port):
        return
    served = ", ".join(serve.status().applications)
    if served:
        raise InputError(
            f"Ray Serve of this cluster listens on {there.host}, port {there.port}, for {served}, "
            f"so --host {config.host} --port {config.port} is not to be had. Give --host "
            f"{there.host} --port {there.port}, or end what is there: serve shutdown."
        )
    serve.shutdown()
    start_serve(config)


def start_serve(config: ServeConfig) -> None:
    """Start Serve; one that is there already keeps its own host and port."""
    serve.start(
        http_options=HTTPOptions(host=config.host, port=config.port),
        logging_config=log_format(),
        controller_options=CONTROLLER,
    )


def keep_open(launcher: str | None = LAUNCHER) -> tuple[Handle | None, str | None]:
    """Make the server that is there this process's own; if it was told to stop, it goes on.

    Returns:
        Its handle, None if there is no server; and whose it was, as far as it knows.
    """
    if APPLICATION not in serve.status().applications:
        return None, None
    door = serve.get_deployment_handle(DOOR, APPLICATION)
    before = None
    try:
        before = door.resume.remote(launcher).result(timeout_s=DOOR_SECONDS)
    except Exception as error:  # of the replica, or of the way to it
        logger.warning("the server does not answer: %r", error)
    return door, before


def log_format() -> LoggingConfig:
    """Let Serve's own log files, of controller, proxies and replicas, be JSON where our lines are.

    Raises:
        InputError: NANORAY_LOG_FORMAT is no format.
    """
    return LoggingConfig(encoding="JSON" if logs.are_json() else "TEXT")


def launch(config: ServeConfig) -> None:
    """Serve until Ctrl-C or SIGTERM, then let the answers in the making end.

    Raises:
        InputError: no such checkpoint, or the port is taken, or Serve listens elsewhere.
    """
    stop = threading.Event()

    def note_signal(number: int, frame: FrameType | None) -> None:
        stop.set()

    logging.getLogger("ray.serve").setLevel(logging.ERROR)  # it tells of each step of its own
    outlives_us = connection.known_address() is not None
    connection.connect(settings=SERVER)
    application = prepare(config)
    listen(config)
    # What runs takes the place of what was there, whose end must not end it too.
    _, before = keep_open()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note_signal)
    try:
        serve.run(
            application,
            name=APPLICATION,
            route_prefix="/",
            blocking=False,
            logging_config=log_format(),
        )
    except RuntimeError as error:
        keep_open(before)
        raise InputError(f"The server did not start: {error}") from error
    # A handle takes a while to be ready, and `ray job stop` leaves three seconds.
    door, _ = keep_open()
    tell_addresses(config)
    if config.open_page:
        webbrowser.open(f"{config.own_url()}/chat")
    while not stop.wait(1.0):
        pass
    if door is not None:
        end(door, None if outlives_us else DRAIN_SECONDS)


def addresses(config: ServeConfig) -> list[str]:
    """Write where the API is, and the page if there is one."""
    url = config.own_url()
    return [f"API   {url}/v1", *([f"page  {url}/chat"] if config.page else [])]


def tell_addresses(config: ServeConfig) -> None:
    """Log where the server is."""
    for line in addresses(config):
        logger.info(line)
    logger.info("Ctrl-C lets the answers in the making end, and stops it")


def end(door: Handle, patience_seconds: float | None) -> None:
    """Have the server end after its last answer, and wait for it; requests get 503 meanwhile.

    A server that is started anew meanwhile belongs to whoever did that, and is waited for no more.

    Args:
        door: its handle.
        patience_seconds: after which this process does not wait any longer, though what it started
            ends with it; by default the server has the time that its longest answer may take.
    """
    deadline = math.inf if patience_seconds is None else time.monotonic() + patience_seconds
    told = ask_to_stop(door)
    if told is None:
        logger.info(
            "another job has started the server since, and it goes on; to end it: serve shutdown"
        )
        return
    logger.info("%d answers are in the making", told)
    while (application := serve.status().applications.get(APPLICATION)) is not None:
        if time.monotonic() > deadline:
            logger.warning("answers that took longer than %.0f s are cut off", patience_seconds)
            return
        if application.status != ApplicationStatus.DELETING:
            left = answers_left(door, told)
            if left is None:
                logger.info("the server was started anew, and goes on")
                return
            if left != told:
                told = left
                logger.info("%d answers are in the making", told)
        time.sleep(0.5)


def answers_left(door: Handle, told: int) -> int | None:
    """Ask how many answers are left of those that were told of; None if the server goes on.

    A door that does not say is asked again, and nothing is deleted: the one that takes its place
    may be another job's, and none answers while the old one still has answers to end.
    """
    try:
        left: int | None = door.left.remote().result(timeout_s=DOOR_SECONDS)
    except Exception as error:  # of the replica, or of the way to it
        logger.warning("the server does not say how many answers it has: %r", error)
        return told
    return left


def ask_to_stop(door: Handle) -> int | None:
    """Have the server take no more requests, and end with its last answer; gives how many are left.

    None if it is another process's by now, or is just being started by one, and goes on.

    Serve goes on with it when this process is killed meanwhile, as `ray job stop` does after 3 s.
    """
    try:
        left: int | None = door.stop.remote(LAUNCHER).result(timeout_s=DOOR_SECONDS)
    except Exception as error:  # of the replica, or of the way to it
        application = serve.status().applications.get(APPLICATION)
        if application is not None and application.status == ApplicationStatus.DEPLOYING:
            return None
        logger.warning("the server does not say how many answers it has: %r", error)
        serve.delete(APPLICATION, _blocking=False)
        return 0
    return left
