"""Reinforcement learning: answers drawn from the model, graded, and kept as trajectories."""
