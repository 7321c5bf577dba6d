"""Train a tokenizer.

python jobs/tokenizer.py --data FOLDER --vocab-size 65536 --output tokenizer.json
"""

from nanoray.config import run_job
from nanoray.stages.tokenizer import TokenizerConfig, train_tokenizer

if __name__ == "__main__":
    run_job(TokenizerConfig, train_tokenizer)
