"""Secrets that stand in addresses: what they look like, and texts without them."""

import re
from collections.abc import Iterator, Sequence

SECRETS_IN_URLS = (
    # A secret access key may hold slashes: after a colon, all up to the last @ is taken for it,
    # unless the colon begins a port.
    (re.compile(r"\b(s3|gs|gcs)://[^\s/@:]*:\S*@", re.IGNORECASE), r"\1://***@"),
    (re.compile(r"://[^\s/:\[]*:(?!\d*(?:[/?#\s]|$))\S*@"), "://***@"),
    # A password may begin as a port does, too. Before an @ in a path stands a slash, or the host
    # is one that nobody takes for a name of a user.
    (
        re.compile(r"://(?!localhost:|(?:\d+\.){3}\d+:)[^\s/:\[]*:\d*[/?#][^\s\"'<>]*[^\s\"'<>/]@"),
        "://***@",
    ),
    # Elsewhere, as in sftp:// and abfs://, a lone name before the @ is no secret.
    (re.compile(r"\b(https?|s3|gs|gcs)://[^\s/@]*@", re.IGNORECASE), r"\1://***@"),
    # What follows name= signs an address; a ? without it is a glob.
    (re.compile(r"(://[^\s?]*\?)(?=[^\s/]*=)\S+"), r"\1***"),
    # As in the headers of a request; a word of an error message is shorter.
    (re.compile(r"\b(Bearer|Basic) [\w.~+/=-]{16,}", re.IGNORECASE), r"\1 ***"),
)

FREE_TEXT = ("--prompt", "--system")
"""Flags whose text goes to a model, and may speak of any address."""


def without_secrets(text: str) -> str:
    """Take the credentials of addresses out of a text."""
    for pattern, replacement in SECRETS_IN_URLS:
        text = pattern.sub(replacement, text)
    return text


def words_of(arguments: Sequence[str]) -> Iterator[str]:
    """Give the words of a command line in which an address may stand."""
    before = ""
    for argument in arguments:
        if before not in FREE_TEXT and argument.partition("=")[0] not in FREE_TEXT:
            yield from argument.split()
        elif argument in FREE_TEXT:
            yield argument
        before = argument
