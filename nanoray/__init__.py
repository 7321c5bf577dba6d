"""nanoray trains a ChatGPT-like model from nothing, on a Ray cluster, and serves it."""

import os

__version__ = "0.1.0"

# Ray reads this once, when it is imported. Left unset, clients and clusters of Ray 2.59 and later
# may disagree on whether a token is needed.
os.environ.setdefault("RAY_AUTH_MODE", "token")
