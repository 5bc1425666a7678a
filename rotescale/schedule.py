"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class LearningRate:
    """Linear warm-up over ``warmup_steps``, then decay to zero at ``total_steps``."""

    shape: Literal["cosine", "linear", "constant"]
    peak: float
    warmup_steps: int
    total_steps: int

    def at(self, step: int) -> float:
        """The learning rate of step 0, 1, …; the first is above zero, and none follows the last.

        The warm-up is (step + 1) / warmup_steps of the peak; with p from 0 to 1 over the steps
        that are left, cosine is (1 + cos(pi p)) / 2 (Loshchilov and Hutter, 2017), linear 1 - p.
        """
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        progress = min(1.0, progress)
        match self.shape:
            case "cosine":
                return self.peak * 0.5 * (1.0 + math.cos(math.pi * progress))
            case "linear":
                return self.peak * (1.0 - progress)
            case "constant":
                return self.peak
