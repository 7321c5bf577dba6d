"""Weights & Biases, if a run asks for it: offline where it cannot be reached, and never in the way.

Whatever goes wrong there costs the run one warning: metrics.jsonl has all that is logged.
"""

import http.client
import logging
import netrc
import os
import ssl
import tempfile
import threading
import urllib.error
import urllib.request
from typing import Any

from nanoray.credentials import without_secrets
from nanoray.metrics import WandbRun
from nanoray.storage import StageFolder, is_local

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 10.0
"""How long the server is waited for before a run logs offline."""
INIT_SECONDS = 30.0
"""How long a server that answers may take to begin a run; wandb's own limit is 90 s."""
FINISH_SECONDS = 60.0
"""How long the end of a run waits for what is not sent yet; wandb itself would wait for ever."""
ONLINE = ("online", "run", "shared")
"""Modes of wandb that need its server."""


class CarefulRun:
    """A run of Weights & Biases that is let go at its first failure, with a warning."""

    def __init__(self, run: WandbRun | None) -> None:
        """Log to what `wandb.init` gave; None for nothing."""
        self.run = run

    def log(self, data: dict[str, Any], step: int | None = None) -> None:  # Any: as in wandb
        """Log values of a step."""
        try:
            if self.run is not None:
                self.run.log(data, step=step)
        except Exception as error:  # wandb raises what its service and its sockets do
            self._let_go(error)

    def finish(self) -> None:
        """Close the run; what could not be sent stays in its folder."""
        try:
            if self.run is not None:
                self.run.finish()
        except Exception as error:  # as above
            self._let_go(error)

    def _let_go(self, error: Exception) -> None:
        """Say that nothing more is logged there; the text of the error may be of any library."""
        self.run = None
        logger.warning(
            "Weights & Biases failed (%s) and gets nothing more from this start; "
            "metrics.jsonl has every step",
            type(error).__name__,
        )


def start_wandb(
    project: str,
    folder: StageFolder,
    config: dict[str, Any],  # Any: JSON
    group: str | None = None,
) -> CarefulRun:
    """Begin or continue the Weights & Biases run of a stage.

    It is offline where there is no API key, and where the server does not answer. The run's id is
    its name, so that a resumed run goes on in the same one.
    """
    name = f"{folder.run.run}-{folder.name}"
    local = folder.path() if is_local(folder.fs) else tempfile.mkdtemp(prefix="nanoray-wandb-")
    facts = {"project": project, "group": group, "name": name, "config": config, "dir": local}
    mode = os.environ.get("WANDB_MODE") or ("online" if has_wandb_key() else "offline")
    if mode in ONLINE:
        run, problem = _begin_online(facts, mode)
        if run is not None:
            return CarefulRun(run)
        logger.warning(
            "Weights & Biases cannot be used online (%s), so this start logs offline to %s/wandb; "
            "`wandb sync` sends that later",
            without_secrets(problem),
            local,
        )
        mode = "offline"
    try:
        return CarefulRun(_begin(facts, mode))
    except Exception as error:  # a full disk, a mode that wandb does not know
        logger.warning(
            "Weights & Biases could not be started in mode %s (%s); metrics.jsonl has every step",
            mode,
            type(error).__name__,
        )
        return CarefulRun(None)


def _begin_online(facts: dict[str, Any], mode: str) -> tuple[WandbRun | None, str]:
    """Begin a run on the server; gives it, or None and what was in the way."""
    import wandb

    try:
        address = str(wandb.setup().settings.base_url)
        problem = why_unreachable(address)
        if problem is not None:
            return None, f"{address}: {problem}"
        return _begin(facts, mode), ""
    except Exception as error:  # no server of wandb, a key that it refuses, no answer after all
        wandb.teardown()  # else the run counts as in use, and cannot begin offline
        return None, type(error).__name__


def _begin(facts: dict[str, Any], mode: str) -> WandbRun:
    """Begin a run in a mode of wandb."""
    import wandb  # slow to import, and only wanted here

    run = wandb.init(
        **facts,
        id=facts["name"],
        resume="allow",
        mode=mode,  # type: ignore[arg-type]  # WANDB_MODE may be anything; wandb says so itself
        settings=wandb.Settings(
            silent=True, console="off", init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS
        ),
    )
    logger.info("logging to Weights & Biases %s, mode %s", facts["name"], mode)
    return run


def has_wandb_key() -> bool:
    """Say whether `wandb login` has left a key, without asking anybody for one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        hosts = netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return any(host.endswith("wandb.ai") for host in hosts)


def why_unreachable(address: str) -> str | None:
    """Ask a web server for anything at all; gives why there was no answer, or None if there was."""
    problems = [f"no answer within {ANSWER_SECONDS:.0f} s"]
    # In a thread, since nothing else bounds the time that looking up a name takes.
    asking = threading.Thread(target=lambda: problems.append(_ask(address)), daemon=True)
    asking.start()
    asking.join(ANSWER_SECONDS)
    return problems[-1] or None


def _ask(address: str) -> str:
    """Give why a web server did not answer; empty if it did, whatever it said."""
    try:
        with urllib.request.urlopen(address, timeout=2 * ANSWER_SECONDS):  # nobody waits so long
            return ""
    except (urllib.error.HTTPError, http.client.HTTPException):
        return ""
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return "" if isinstance(reason, ssl.SSLError) else str(reason) or type(error).__name__
