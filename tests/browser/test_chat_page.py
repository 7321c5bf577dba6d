"""The chat page as its user drives it."""

import json
import time
from contextlib import closing
from typing import Any

import pytest

from nanoray.serve.settings import ApiSettings
from tests.browser.visit import Visit, wait_until
from tests.chat_run import COUNTING, EMOJI, HOSTILE, WEATHER, chat_model
from tests.serve.server import LocalServer, serve


def test_an_answer_appears_step_by_step(
    visit: Visit, page_server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So slow that a busy machine too sees it grow.
    monkeypatch.setattr(page_server.thread, "_observe", lambda _: time.sleep(0.05))
    seen: set[str] = set()

    visit.ask("Count")
    deadline = time.monotonic() + 30
    while COUNTING.strip() not in " ".join(seen) and time.monotonic() < deadline:
        seen |= {answer.split("\n")[0] for answer in visit.answers()}
    visit.wait_for_answer("ten one two")

    assert len(seen) >= 3, seen
    assert "tokens/s" in visit.page.locator("#speed").inner_text()


@pytest.mark.slow
def test_emoji_arrive_whole(visit: Visit) -> None:
    visit.ask("Show me emoji")

    visit.wait_for_answer(EMOJI)


def test_a_tool_call_is_a_block_that_opens_and_shows_84(visit: Visit) -> None:
    visit.ask("What is 12*(3+4)?")
    visit.wait_for_answer("It is 84.")

    visit.page.get_by_text("python: 12*(3+4)").click()

    visit.page.get_by_text("84", exact=True).wait_for()


def test_html_of_the_model_is_shown_as_text(visit: Visit) -> None:
    visit.ask("Show me HTML")
    visit.wait_for_answer(HOSTILE.partition(" and ")[0])

    assert visit.page.evaluate("window.hacked") is None
    assert visit.page.locator("[role=log] img").count() == 0


def test_html_of_the_user_is_shown_as_text(visit: Visit) -> None:
    visit.ask('<img src=x onerror="window.hacked=2"><script>window.hacked=3</script> hi')
    visit.page.locator(".bot.message").first.wait_for()

    assert visit.page.evaluate("window.hacked") is None
    assert visit.page.locator("[role=log] img").count() == 0
    shown = visit.page.locator(".user.message").first.inner_text()
    assert '<img src=x onerror="window.hacked=2">' in shown


def test_stop_ends_the_answer_and_frees_its_place(
    visit: Visit, page_server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = page_server.thread.engine
    monkeypatch.setattr(page_server.thread, "_observe", lambda _: time.sleep(0.2))

    visit.ask("Count")
    visit.page.locator(".bot.message", has_text="one").last.wait_for()
    visit.page.get_by_role("button", name="Stop").click()
    deadline = time.monotonic() + 2
    while engine.has_work and time.monotonic() < deadline:
        time.sleep(0.02)

    assert not engine.has_work
    assert page_server.api.admission.taken == 0


def test_retry_undo_and_edit(visit: Visit, page_server: LocalServer) -> None:
    visit.ask("What color is the sky?")
    visit.wait_for_answer(WEATHER)

    asked = len(page_server.recorder.bodies)
    visit.page.get_by_label("Retry").last.click()
    wait_until(lambda: len(page_server.recorder.bodies) > asked)
    wait_until(lambda: visit.answers() == [WEATHER])
    visit.page.get_by_label("Undo").last.click()
    visit.page.locator(".bot.message").first.wait_for(state="detached")
    box = visit.page.get_by_label("Message", exact=True)
    undone = box.input_value()
    visit.ask("Count")
    visit.wait_for_answer("ten")
    visit.page.get_by_label("Edit").last.click()
    editor = visit.page.locator("textarea.edit-textarea, .edit-textarea textarea").first
    editor.fill("Show me emoji")
    visit.page.get_by_label("Submit").first.click()
    visit.wait_for_answer(EMOJI)

    assert undone == "What color is the sky?"


@pytest.mark.slow
def test_all_buttons_work_by_the_keyboard_alone(
    visit: Visit, page_server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(page_server.thread, "_observe", lambda _: time.sleep(0.2))
        visit.ask("Count")
        visit.page.locator(".bot.message", has_text="one").last.wait_for()
        visit.press(visit.page.get_by_role("button", name="Stop"), "Enter")
        wait_until(lambda: not page_server.thread.engine.has_work)
    visit.wait_for_the_end()

    asked = len(page_server.recorder.bodies)
    visit.press(visit.page.get_by_role("button", name="Retry").last, "Enter")
    wait_until(lambda: len(page_server.recorder.bodies) > asked)
    visit.wait_for_answer("ten one two")
    visit.press(visit.page.get_by_role("button", name="Edit").last, "Space")
    editor = visit.page.locator("textarea.edit-textarea, .edit-textarea textarea").first
    editor.focus()
    visit.page.keyboard.press("Control+A")
    visit.page.keyboard.type("What color is the sky?")
    visit.press(visit.page.get_by_role("button", name="Submit").first, "Enter")
    visit.wait_for_answer(WEATHER)
    visit.press(visit.page.get_by_role("button", name="Undo").last, "Space")
    visit.page.locator(".bot.message").first.wait_for(state="detached")

    assert visit.page.get_by_label("Message", exact=True).input_value() == "What color is the sky?"


def test_answers_are_read_out_as_they_come(visit: Visit) -> None:
    logs = visit.page.get_by_role("log")

    live = logs.evaluate_all("logs => logs.map(log => log.getAttribute('aria-live'))")

    assert live == ["polite"] * logs.count()
    assert live


def test_controls_reach_the_request(visit: Visit, page_server: LocalServer) -> None:
    visit.set_slider("Top k", 7)
    visit.set_slider("Max tokens", 9)
    visit.page.get_by_label("System prompt").first.fill("Be brief.")
    visit.page.get_by_label("System prompt").first.press("Tab")

    visit.ask("What color is the sky?")
    visit.wait_for_answer("The sky")
    body = json.loads(page_server.recorder.bodies[-1])

    assert (body["temperature"], body["top_k"], body["max_tokens"]) == (0, 7, 9)
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}


@pytest.mark.slow
def test_the_history_survives_a_reload(visit: Visit) -> None:
    visit.ask("What color is the sky?")
    visit.wait_for_answer(WEATHER)
    time.sleep(1)

    visit.page.reload()
    visit.page.get_by_label("Message", exact=True).wait_for()
    visit.page.get_by_text("What color is the sky?").first.click()

    visit.page.locator(".bot.message", has_text=WEATHER).wait_for()


@pytest.mark.slow
def test_two_models_answer_side_by_side(browser: Any) -> None:
    models = {"chat/sft@10": chat_model(), "chat/sft@20": chat_model(forgetful=True)}
    with (
        serve(ApiSettings(), page=True, models=models) as server,
        closing(Visit(browser, server.url)) as visit,
    ):
        visit.page.get_by_role("tab", name="Compare").click()
        visit.page.get_by_role("button", name="Sampling").click()
        visit.set_slider("Temperature", 0)
        box = visit.page.get_by_label("Message to both")

        box.fill("What color is the sky?")
        box.press("Enter")
        wait_until(lambda: len(server.recorder.bodies) == 2)
        wait_until(lambda: not server.api.admission.taken)
        sides = visit.page.locator(".bot.message:visible")
        sides.nth(1).wait_for()
        left, right = (text.strip() for text in sides.all_inner_texts())
        asked = [json.loads(body)["model"] for body in server.recorder.bodies]

    assert asked == list(models)
    assert left == WEATHER
    assert right
    assert right != WEATHER


def test_an_engine_that_fails_is_told_and_the_question_stays(browser: Any) -> None:
    with serve(ApiSettings(), page=True) as server:
        visit = Visit(browser, server.url)
        server.thread.engine.runner = None  # type: ignore[assignment]

        visit.ask("What color is the sky?")
        visit.page.get_by_text("The server could not answer").wait_for()

        assert visit.page.locator(".user.message").inner_text().strip() == "What color is the sky?"
        visit.close()


@pytest.mark.slow
def test_several_visitors_are_answered_at_once(browser: Any, page_server: LocalServer) -> None:
    visits = [Visit(browser, page_server.url) for _ in range(3)]
    for visit in visits:
        visit.be_greedy()
    for visit in visits:
        visit.ask("Count")

    for visit in visits:
        visit.wait_for_answer("ten one two")
        visit.close()


def test_every_control_has_a_name(visit: Visit) -> None:
    nameless = visit.page.evaluate(
        """() => [...document.querySelectorAll('button, input, textarea')]
            .filter(e => e.offsetParent && !(e.ariaLabel || e.textContent.trim() || e.title
                || e.placeholder || e.labels?.length))
            .map(e => e.outerHTML.slice(0, 120))"""
    )

    assert nameless == []


def test_on_a_phone_nothing_is_wider_than_the_screen(
    browser: Any, page_server: LocalServer
) -> None:
    visit = Visit(browser, page_server.url, viewport={"width": 390, "height": 844})
    visit.ask("Count")
    visit.page.locator(".bot.message").first.wait_for()

    width = visit.page.evaluate("document.documentElement.scrollWidth")
    visit.close()

    assert width <= 390
