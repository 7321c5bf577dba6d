"""A server with the page in a process of its own, which a test can kill; answers come slowly."""

import sys
import time

import torch

from nanoray.serve.settings import ApiSettings
from tests.chat_run import build
from tests.serve.server import MODEL, serve

if __name__ == "__main__":
    model = build()
    model.load_state_dict(torch.load(sys.argv[1]))
    with serve(ApiSettings(), page=True, models={MODEL: model}) as server:
        server.thread._observe = lambda _: time.sleep(0.2)
        print(server.url, flush=True)
        sys.stdin.read()
