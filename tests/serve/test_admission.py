"""Places, and who gets them."""

import pytest

from nanoray.serve.admission import Admission
from nanoray.serve.errors import APIError


def test_places_are_taken_and_given_back_once() -> None:
    admission = Admission(3)

    ticket = admission.enter(2)
    admission.enter(1)
    ticket.leave()
    ticket.leave()

    assert admission.taken == 1


def test_whoever_finds_no_place_is_told_to_come_again() -> None:
    admission = Admission(3)
    admission.enter(2)

    with pytest.raises(APIError, match="2 answers are in the making, and 3 are the most") as caught:
        admission.enter(2)

    assert (caught.value.status, admission.taken) == (429, 2)


def test_more_answers_than_there_are_places_at_all_is_said_as_such() -> None:
    with pytest.raises(APIError, match="4 answers, and 3 are the most at once") as caught:
        Admission(3).enter(4)

    assert (caught.value.status, caught.value.headers) == (400, {})  # later there are no more


def test_a_server_about_to_stop_lets_nobody_in() -> None:
    admission = Admission(3)
    admission.is_draining = True

    with pytest.raises(APIError) as caught:
        admission.enter(1)

    assert caught.value.status == 503
