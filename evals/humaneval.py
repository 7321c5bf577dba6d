"""HumanEval: functions to be written from their signature and docstring, graded by running them."""

import re

from evals.grader import ProgramTests, grade_program
from evals.hub import read_split
from nanoray.inference.sandbox import Level, LevelChoice, Limits, choose_level
from nanoray.task import Example, Grade

FENCED = re.compile(r"```(?:python)?\s*\n(.*?)\n```", re.DOTALL)
LIMITS = Limits()
"""5 seconds as in nanochat; of memory twice as much, since our limit counts Python's own too."""


class HumanEval:
    """Functions to be completed; `sandbox` is the level at which answers are run.

    Raises:
        LevelError: this machine does not have the level that was asked for.
    """

    name: str = "HumanEval"
    baseline: float = 0.0

    def __init__(self, hub_dir: str | None = None, *, sandbox: LevelChoice = "auto") -> None:
        self.level: Level = choose_level(sandbox)
        self.sandbox: str | None = self.level
        dataset = "openai/openai_humaneval"
        columns = ("prompt", "canonical_solution", "test", "entry_point")
        self.rows = read_split(dataset, "openai_humaneval", "test", hub_dir, columns=columns)

    def __len__(self) -> int:
        """Give the number of functions."""
        return len(self.rows)

    def example(self, index: int) -> Example:
        """Give one function; the answer is all of it, its beginning included."""
        row = self.rows[index]
        messages = (
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": f"{row['prompt']}\n{row['canonical_solution']}"},
        )
        return Example(messages)

    def tests(self, index: int) -> object:
        """Give what an answer is graded by, beside what the example shows."""
        return [self.rows[index]["test"], self.rows[index]["entry_point"]]

    def grade(self, index: int, answer: str) -> Grade:
        """Run the function of an answer against its tests, in a sandbox.

        Raises:
            SandboxError: the sandbox did not start, which says nothing about the answer.
        """
        row = self.rows[index]
        # Two of the tests call a helper that the prompt defines.
        tests = ProgramTests(row["entry_point"], check=row["test"], prelude=row["prompt"])
        return grade_program(program(row["prompt"], answer), tests, LIMITS, level=self.level)


def program(prompt: str, answer: str) -> str:
    """Take the program out of an answer: its first block of code, or all of it.

    The imports of the prompt are put before it, because a model takes them for given. (Both rules:
    nanochat.)
    """
    block = FENCED.search(answer)
    code = (block[1] if block else answer).strip()
    return "\n\n".join(filter(None, [leading_imports(prompt), code]))


def leading_imports(prompt: str) -> str:
    """Give the import lines at the top of a prompt, comments and empty lines left out."""
    imports = []
    for line in map(str.strip, prompt.splitlines()):
        if line.startswith(("import ", "from ")):
            imports.append(line)
        elif line and not line.startswith("#"):
            break
    return "\n".join(imports)
