"""A bundle of three tiny tasks, one of each kind, for tests that need no real questions."""

import json
from pathlib import Path
from typing import Any

CORE_YAML = """
icl_tasks:
- {label: colors, dataset_uri: a/colors.jsonl, num_fewshot: [2], icl_task_type: multiple_choice,
   continuation_delimiter: "\\nAnswer: "}
- {label: pronouns, dataset_uri: a/pronouns.jsonl, num_fewshot: [0], icl_task_type: schema}
- {label: capitals, dataset_uri: b/capitals.jsonl, num_fewshot: [1],
   icl_task_type: language_modeling}
"""
METADATA = "Eval Task,Random baseline\ncolors,50\npronouns,50\ncapitals,0\n"


def items() -> dict[str, list[dict[str, Any]]]:
    """Give the examples of each file."""
    words = ["red", "green", "blue", "white", "black", "brown", "grey", "pink"]
    return {
        "a/colors.jsonl": [
            {"query": f"Which is {word}?", "choices": [word, words[i % 8 - 1]], "gold": i % 2}
            for i, word in enumerate(words * 3)
        ],
        "a/pronouns.jsonl": [
            {"context_options": [f"He saw {w} and", f"She saw {w} and"], "continuation": "ran.",
             "gold": i % 2}
            for i, w in enumerate(words)
        ],
        "b/capitals.jsonl": [
            {"context": f" The {word} house is ", "continuation": word} for word in words
        ],
    }  # fmt: skip


def write_bundle(folder: Path) -> Path:
    """Write the bundle into a folder, and give it."""
    (folder / "core.yaml").parent.mkdir(parents=True, exist_ok=True)
    (folder / "core.yaml").write_text(CORE_YAML)
    (folder / "eval_meta_data.csv").write_text(METADATA)
    for name, rows in items().items():
        path = folder / "eval_data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
