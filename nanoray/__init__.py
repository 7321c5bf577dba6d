"""nanoray trains a ChatGPT-like model from nothing, on a Ray cluster, and serves it."""

import os

__version__ = "0.1.0"

# Ray reads this once, when it is imported. Left unset, clients and clusters of Ray 2.59 and later
# may disagree on whether a token is needed.
os.environ.setdefault("RAY_AUTH_MODE", "token")

# Ray Data's usage report polls the cluster in a thread that outlives the connection; when it meets
# the end of one, Ray ends the whole process with code 1 (2.60).
os.environ.setdefault("RAY_DATA_USAGE_DISABLED", "1")
