"""How many answers are in the making, and who has to come again later."""

from nanoray.serve.errors import APIError, busy, unavailable

RETRY_AFTER_SECONDS = 2


class Admission:
    """Counts places; a request takes as many as it has answers, and gives them back."""

    def __init__(self, most: int) -> None:
        self.most, self.taken, self.is_draining = most, 0, False

    def enter(self, count: int) -> "Ticket":
        """Take places.

        Raises:
            APIError: 429 if there are too few now, 400 if there never are so many, 503 if the
                server is about to end.
        """
        if self.is_draining:
            raise unavailable("The server is about to stop, and takes no more requests.")
        if count > self.most:
            raise APIError(
                400,
                f"The request asks for {count} answers, and {self.most} are the most at once. "
                "Ask for them in several requests.",
                code="too_many_answers",
            )
        if self.taken + count > self.most:
            raise busy(
                f"{self.taken} answers are in the making, and {self.most} are the most. "
                "Try again in a moment.",
                RETRY_AFTER_SECONDS,
            )
        self.taken += count
        return Ticket(self, count)


class Ticket:
    """The places of one request."""

    def __init__(self, admission: Admission, count: int) -> None:
        self._admission, self._count = admission, count

    def leave(self) -> None:
        """Give the places back; a second time does nothing."""
        self._admission.taken -= self._count
        self._count = 0
