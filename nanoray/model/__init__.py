"""The language model: token ids to logits, and what follows from its depth."""
