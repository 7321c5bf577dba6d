"""Our own log lines: for people, or one JSON object each for what collects logs.

NANORAY_LOG_FORMAT says which. Both are without the credentials of addresses, which come in the
environment, as that of HF_ENDPOINT, and which libraries put into their errors.
"""

import datetime
import json
import logging
import os
import sys
import time

from nanoray.config import InputError
from nanoray.credentials import without_secrets

FORMAT_VARIABLE = "NANORAY_LOG_FORMAT"
FORMATS = ("text", "json")


def are_json() -> bool:
    """Say whether lines are to be JSON.

    Raises:
        InputError: the variable says something else than the formats there are.
    """
    chosen = os.environ.get(FORMAT_VARIABLE) or FORMATS[0]
    if chosen not in FORMATS:
        raise InputError(f"{FORMAT_VARIABLE}={chosen} is unknown. Choose {' or '.join(FORMATS)}.")
    return chosen == "json"


def json_line(
    level: str, logger: str, message: str, *, seconds: float | None = None, traceback: str = ""
) -> str:
    """Write a line as JSON.

    Args:
        level: its name, as INFO.
        logger: the name of what says it.
        message: the text.
        seconds: when, since 1970; by default now.
        traceback: of an error, if there is one.
    """
    when = datetime.datetime.fromtimestamp(seconds or time.time(), datetime.UTC)
    line = {
        "time": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": level,
        "logger": logger,
        "message": without_secrets(message),
    }
    if traceback:
        line["traceback"] = without_secrets(traceback)
    return json.dumps(line, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """Writes lines for people, tracebacks included."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """Write one line."""
        return without_secrets(super().format(record))


class JsonFormatter(logging.Formatter):
    """Writes a JSON object per line; a traceback is one of its values."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one line."""
        return json_line(
            record.levelname,
            record.name,
            record.getMessage(),
            seconds=record.created,
            traceback=self.formatException(record.exc_info) if record.exc_info else "",
        )


def log_to_stderr() -> None:
    """Show what nanoray logs, and the warnings of others, in the format that is asked for."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if are_json() else TextFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    for package in ("nanoray", "evals"):
        logging.getLogger(package).setLevel(logging.INFO)


def say_last(text: str, *, level: str = "ERROR", traceback: str = "") -> None:
    """Tell on stderr what a job ended of; for people a traceback tells the text too."""
    if are_json():
        line = json_line(level, "nanoray", text, traceback=traceback)
    else:
        line = without_secrets(traceback or text)
    sys.stderr.write(line.rstrip("\n") + "\n")
