"""Strings, token ids and conversations."""
