"""The training loop and what it needs; no Ray, so that it runs on a machine that has only torch."""
