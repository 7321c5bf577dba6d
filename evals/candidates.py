"""Models that take exams: a checkpoint of a run, or a folder in Hugging Face's layout."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nanoray.config import InputError
from nanoray.inference.cache_size import blocks_that_fit
from nanoray.inference.engine import Engine, EngineConfig
from nanoray.inference.sampling import SamplingParams
from nanoray.inference.scoring import Likelihood, Question, Scorer
from nanoray.model.gpt import GPT
from nanoray.text.chat import Message, render_for_completion
from nanoray.text.tokenizer import Tokenizer

PASS_TOKENS = {"cpu": 4096, "cuda": 32_768}
"""Most tokens of one pass of the scorer: more of them make a GPU no faster."""

NO_TRANSFORMERS = (
    "A Hugging Face model needs transformers. Install it: pip install 'nanoray[bench]'"
)
DOCUMENT_STARTS = ("<|bos|>", "<|endoftext|>")
"""Of tokenizers that name no bos_token; nanochat looks for the same ones."""


class TrainedModel:
    """A model of ours; scoring and writing share its weights."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, *, batch_size: int = 32) -> None:
        """Take over a model; `batch_size` questions are scored, or answers written, at once."""
        device = model.embedding.weight.device
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.scorer = Scorer(model, batch_size=batch_size, pass_tokens=PASS_TOKENS[device.type])
        self.longest = self.scorer.longest
        self._engine: Engine | None = None

    def encode(self, text: str) -> list[int]:
        """Give the ids of a text."""
        return self.tokenizer.encode(text)

    def document(self, text: str) -> list[int]:
        """Give the ids of a text that begins a document."""
        return [self.tokenizer.bos_id, *self.tokenizer.encode(text)]

    def chat_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Render a conversation whose last message is to be written."""
        return render_for_completion(messages, self.tokenizer)

    def answer_ids(self, messages: Sequence[Message], answer: str) -> list[int]:
        """Give the ids of an answer; the opened turn ends in a token that joins nothing."""
        return self.encode(answer)

    def score(self, questions: Sequence[Question]) -> list[list[Likelihood]]:
        """Say how likely all options of all questions are."""
        return self.scorer.score(questions)

    def write(self, prompts: Sequence[list[int]], max_tokens: int) -> list[str | None]:
        """Continue prompts greedily, with the calculator at hand, as far as rotary angles reach."""
        fitting = [len(prompt) for prompt in prompts if len(prompt) < self.longest]
        engine = self.engine(min(self.longest, max(fitting, default=0) + max_tokens))
        written: dict[int, list[int]] = {}
        order: list[int | None] = []
        for prompt in prompts:
            room = self.longest - len(prompt)
            if room < 1:
                order.append(None)
                continue
            params = SamplingParams(max_tokens=min(max_tokens, room), temperature=0, tools=True)
            order.append(engine.add(prompt, params))
        while engine.has_work:
            for output in engine.step():
                tokens = written.setdefault(output.request, [])
                if output.token not in engine.eos_ids:
                    tokens.append(output.token)
        return [None if number is None else self._text(written, number) for number in order]

    def _text(self, written: dict[int, list[int]], request: int) -> str:
        """Decode all that was written, tool blocks included; what is no UTF-8 becomes U+FFFD."""
        return self.tokenizer.decode(written[request])

    def engine(self, context_tokens: int) -> Engine:
        """Build the engine when something is to be written, anew when it must hold longer texts."""
        if self._engine is None or self._engine.context_tokens < context_tokens:
            self._engine = None  # before its successor, so that they are never there together
            torch.cuda.empty_cache()
            # As serving allows: then few prompts are so long that it must be built twice.
            context = max(context_tokens, self.model.config.max_seq_len)
            num_blocks = blocks_that_fit(self.model, self.batch_size, context_tokens=context)
            config = EngineConfig(
                max_sequences=self.batch_size,
                step_tokens=max(512, self.batch_size),
                num_blocks=num_blocks,
                context_tokens=context,
            )
            self._engine = Engine(self.model, self.tokenizer, config)
        return self._engine


class HuggingFaceModel:
    """A causal language model as `transformers` loads it from a folder: text by text, unpadded."""

    def __init__(self, folder: str, dtype: torch.dtype, device: torch.device) -> None:
        """Load model and tokenizer.

        Raises:
            InputError: `transformers` is not installed, or the folder holds no model, or not all of
                its weights, or its tokenizer has no token that begins a text.
        """
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
        except ImportError as error:
            raise InputError(NO_TRANSFORMERS) from error
        try:
            # Any: the methods of these classes take and give whatever suits their many models.
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            loader: Any = AutoModelForCausalLM
            model, told = loader.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that they can be named
            )
        except (OSError, ValueError) as error:
            raise InputError(
                f"{folder} holds no model that transformers can load: {error}"
            ) from error
        check_weights(folder, told)
        self.folder, self.model, self.device = folder, model.to(device).eval(), device
        config = self.model.config
        self.longest = int(getattr(config, "max_position_embeddings", 0) or 2**31)
        self.first_id = first_id(folder, self.tokenizer)
        # What the passed settings leave open, generate() takes from the model's own, so a penalty
        # for repetitions that the folder asks for stays away only if it stands there no more.
        ends = self.model.generation_config.eos_token_id
        settings: Any = GenerationConfig
        self.model.generation_config = settings(
            do_sample=False,
            num_beams=1,
            eos_token_id=self.tokenizer.eos_token_id if ends is None else ends,
            pad_token_id=self.first_id,
        )

    def encode(self, text: str) -> list[int]:
        """Give the ids of a text."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def document(self, text: str) -> list[int]:
        """Give the ids of a text that begins a document."""
        return [self.first_id, *self.encode(text)]

    def chat_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Render a conversation by the template that came with the tokenizer."""
        return self.encode(self._chat_text(messages))

    def answer_ids(self, messages: Sequence[Message], answer: str) -> list[int]:
        """Give the ids of an answer as it stands behind a conversation.

        Alone it may be encoded in another way: many tokenizers put a space before a text.

        Raises:
            InputError: the answer's characters join the last token of the opened turn.
        """
        prompt = self._chat_text(messages)
        before, whole = self.encode(prompt), self.encode(prompt + answer)
        if whole[: len(before)] != before:
            raise InputError(
                f"{self.folder}: after the chat template, which ends in {prompt[-12:]!r}, the "
                f"tokenizer joins the answer {answer!r} to what stands before it, so it has no "
                "likelihood of its own. Leave out the tasks with choices: arc-easy, "
                "arc-challenge, mmlu."
            )
        return whole[len(before) :]

    def _chat_text(self, messages: Sequence[Message]) -> str:
        """Render a conversation whose last message is to be written."""
        if not self.tokenizer.chat_template:
            raise InputError(
                "This model has no chat template, so it cannot be asked questions. Leave out the "
                "chat tasks: --tasks core."
            )
        text: str = self.tokenizer.apply_chat_template(
            list(messages[:-1]), add_generation_prompt=True, tokenize=False
        )
        return text

    def score(self, questions: Sequence[Question]) -> list[list[Likelihood]]:
        """Say how likely all options of all questions are."""
        return [
            [self._likelihood([*question.prefix], [*option]) for option in question.options]
            for question in questions
        ]

    @torch.inference_mode()
    def _likelihood(self, prefix: list[int], option: list[int]) -> Likelihood:
        """Score one text by a pass of its own."""
        if not option:
            return Likelihood([], True)
        ids = torch.tensor([prefix + option], device=self.device)
        logits = self.model(ids).logits[0, len(prefix) - 1 : -1].float()
        wanted = ids[0, len(prefix) :]
        chosen = logits.gather(1, wanted[:, None])[:, 0] - logits.logsumexp(1)
        return Likelihood(chosen.tolist(), bool((logits.argmax(1) == wanted).all()))

    def write(self, prompts: Sequence[list[int]], max_tokens: int) -> list[str | None]:
        """Continue prompts greedily, one by one."""
        written: list[str | None] = []
        for prompt in prompts:
            room = self.longest - len(prompt)
            if room < 1:
                written.append(None)
                continue
            ids = self._continue(prompt, min(max_tokens, room))
            text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
            written.append(text)
        return written

    @torch.inference_mode()
    def _continue(self, prompt: list[int], max_tokens: int) -> list[int]:
        """Give the likeliest tokens, one after the other, after a prompt."""
        ids = torch.tensor([prompt], device=self.device)
        out = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens
        )
        continuation: list[int] = out[0, len(prompt) :].tolist()
        return continuation


def check_weights(folder: str, told: Mapping[str, Any]) -> None:  # Any: names, or names and shapes
    """Refuse a model some of whose weights are not in its folder: they would be random.

    Raises:
        InputError: some are missing, or have another shape.
    """
    for problem, key in (("lacks", "missing_keys"), ("has in another shape", "mismatched_keys")):
        names = sorted(name if isinstance(name, str) else name[0] for name in told[key])
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise InputError(
                f"{folder} {problem} weights that its config.json asks for: "
                f"{', '.join(names[:3])}{more}. Fetch the whole model anew."
            )


def first_id(folder: str, tokenizer: Any) -> int:  # Any: of any of transformers' classes
    """Give the token that begins every text.

    Models of conversations often have none of their own, and the one that ends their turns would
    mislead them; then it is the one that stood between the documents of their training.

    Raises:
        InputError: there is none.
    """
    known = tokenizer.get_vocab()
    named = [known[text] for text in DOCUMENT_STARTS if text in known]
    for number in (tokenizer.bos_token_id, *named, tokenizer.eos_token_id):
        if number is not None:
            return int(number)
    raise InputError(
        f"The tokenizer of {folder} has no token that begins a text: neither a bos_token nor "
        f"{', '.join(DOCUMENT_STARTS)} nor an eos_token. Name one in tokenizer_config.json."
    )
