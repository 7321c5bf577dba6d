"""How the server behaves towards its clients."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ApiSettings:
    """Limits, keys and deadlines of the API."""

    api_keys: tuple[str, ...] = ()
    """Who has one of these may ask; without any, everyone who reaches the port."""
    cors_origins: tuple[str, ...] = ()
    """Web pages of these origins may call the API from a browser."""
    most_answers: int = 128
    """Answers in the making at once, waiting ones included; whoever comes then gets a 429."""
    most_body_bytes: int = 2_000_000
    first_token_seconds: float = 60.0
    """An answer that has not begun by then is given up, and its client told to come again."""
    answer_seconds: float = 600.0
    """An answer that has not ended by then ends there, as one of `max_tokens` does."""
