"""The page of a whole run."""

from pathlib import Path

from nanoray.ops.pipeline_page import StageFacts, write_page
from nanoray.storage import RunFolder

FACTS = [
    StageFacts("pretrain", 3600.0, 24.0, 0.9, {"parameters": "10"}, []),
    StageFacts("sft", 120.0, 0.8, None, {"weights": "w"}, [("Who <are> you?", "I & nanoray")]),
]


def test_the_page_says_what_each_stage_took_and_what_the_last_one_says(tmp_path: Path) -> None:
    write_page(RunFolder(str(tmp_path), "r"), FACTS)

    page = (tmp_path / "r/report.html").read_text()
    assert "60 min, $24.00, goodput 90 %" in page
    assert "62 min, $24.80 for training; evaluations are not counted" in page
    assert "<b>Who &lt;are&gt; you?</b> I &amp; nanoray" in page
    assert 'href="sft/report.html"' in page


def test_without_gpus_nothing_has_a_price(tmp_path: Path) -> None:
    assert StageFacts("rl", 60.0, None, 0.5, {}, []).line() == "   RL  60 s, goodput 50 %"
