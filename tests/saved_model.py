"""A model written as a finished stage of a run, by the means of the training loop."""

from nanoray.model.gpt import GPT
from nanoray.storage import StageFolder
from nanoray.text.tokenizer import Tokenizer
from nanoray.text.tokenizer_file import save_tokenizer
from nanoray.train.checkpoint import Checkpointer, SavePolicy
from nanoray.train.optimizer import MuonAdamW, OptimizerConfig
from nanoray.train.state import TrainState
from nanoray.train.world import LocalWorld


def save_model(
    folder: StageFolder, model: GPT, tokenizer: Tokenizer, steps: tuple[int, ...] = (10,)
) -> StageFolder:
    """Write a model with its tokenizer, with the same weights at each of the steps."""
    save_tokenizer(tokenizer, folder.run.tokenizer_address)
    facts = {"tokenizer_hash": tokenizer.hash, "model": model.config.to_json()}
    attempt = folder.run.begin_attempt(folder.name)
    checkpointer = Checkpointer(
        folder, LocalWorld(), attempt=attempt, facts=facts, policy=SavePolicy(keep_last=9)
    )
    state = TrainState(model, MuonAdamW(model, OptimizerConfig(0.02, 0.2, 0.004), LocalWorld()))
    for step in steps:
        state.step = step
        checkpointer.save(state)
    checkpointer.wait()
    folder.run.mark_done(folder.name)
    return folder
