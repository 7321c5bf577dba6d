"""Learning rate and momentum as functions of the step: nothing to save, nothing to restore."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Factor on the learning rates and Muon's momentum, over a run of `num_steps` (d34)."""

    num_steps: int
    warmup_ratio: float = 0.0
    warmdown_ratio: float = 0.2
    final_lr_fraction: float = 0.0
    momentum_start: float = 0.85
    momentum_end: float = 0.95
    momentum_steps: int = 300

    def lr_multiplier(self, step: int) -> float:
        """Give the factor for the update after `step` finished ones: up, flat, linearly down."""
        warmup = round(self.warmup_ratio * self.num_steps)
        warmdown = round(self.warmdown_ratio * self.num_steps)
        if step < warmup:
            return (step + 1) / warmup
        if step <= self.num_steps - warmdown:
            return 1.0
        left = (self.num_steps - step) / warmdown
        return left + (1 - left) * self.final_lr_fraction

    def momentum(self, step: int) -> float:
        """Give Muon's momentum for the update that follows `step` finished ones."""
        progress = min(step / self.momentum_steps, 1.0)
        return (1 - progress) * self.momentum_start + progress * self.momentum_end
