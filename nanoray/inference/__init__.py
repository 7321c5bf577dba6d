"""Requests to tokens: sequences, cache blocks, scheduling, sampling and tools, without Ray."""
