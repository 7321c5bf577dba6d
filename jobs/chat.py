"""Talk to a served model in the terminal.

python jobs/serve.py --run demo        # in another terminal
python jobs/chat.py
"""

from nanoray.config import run_job
from nanoray.serve.terminal import ChatConfig, chat

if __name__ == "__main__":
    run_job(ChatConfig, chat)
