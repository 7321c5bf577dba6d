"""How the server behaves towards its clients."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ApiSettings:
    """Limits, keys and deadlines of the API."""

    key_hashes: tuple[str, ...] = ()
    """SHA-256 of the API keys, in hex; without any, whoever is on this machine may ask."""
    cors_origins: tuple[str, ...] = ()
    """Web pages of these origins may call the API from a browser."""
    most_answers: int = 128
    """Answers in the making at once, waiting ones included; whoever comes then gets a 429."""
    most_body_bytes: int = 2_000_000
    first_token_seconds: float = 60.0
    """An answer that has not begun by then is given up, and its client told to come again."""
    answer_seconds: float = 600.0
    """An answer that has not ended by then ends there, as one of `max_tokens` does."""

    @property
    def longest_seconds(self) -> float:
        """How long a server that is told to stop, or is replaced, may have to go on."""
        return self.answer_seconds + 30.0  # for what is on its way to the client


def hash_keys(keys: Iterable[str]) -> tuple[str, ...]:
    """Give the hashes of API keys: the keys themselves are not kept, sent or shown anywhere."""
    return tuple(hashlib.sha256(key.encode()).hexdigest() for key in keys)
