"""The words for how a call went, which clients and kept conversations know."""

import json

from nanoray.serve.call_status import CallStatus


def test_the_words_are_plain_text_in_json() -> None:
    assert json.dumps(list(CallStatus)) == '["done", "unverified", "failed", "unfinished"]'
