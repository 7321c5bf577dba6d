"""How a call of the calculator went: the field `status` of the extension `tool_events`."""

from enum import StrEnum


class CallStatus(StrEnum):
    """What can be said of a call's output."""

    DONE = "done"
    """The calculator gave it."""
    UNVERIFIED = "unverified"
    """The model wrote it itself."""
    FAILED = "failed"
    """There is none: the calculator had no result."""
    UNFINISHED = "unfinished"
    """The answer ended within the call: the code, or the output if there is one, is not whole."""
