"""How much of ``gpu_check.py``'s numbers may differ, by dtype, and the error where they do."""

from __future__ import annotations

from typing import Any

ALIKE = {"fp32": 1e-4, "bf16": 0.05}
"""Of log-probabilities of one model in one dtype, as ``gpu_kernels.apart`` has it. On a CPU, with 2
to 30 layers, bf16 came to 0.02 at most, and controls to 0.55 at least."""
BF16_OF_FP32 = 0.08
"""The same between bf16 and fp32, or two attentions in bf16: 0.03 on a CPU with 16 layers."""
FP32_OF_CPU = 1e-3
WHOLE_ROW = {"fp32": 1e-5, "bf16": 2e-3}
"""Of the mean loss of a row, as a share of it."""
COSINES = {"fp32": 0.9999, "bf16": 0.98}
"""Least between gradients of a parameter. On a CPU two attentions in bf16 came to 0.999, and the
control to 0.1 to 0.3, below ``CONTROL_COSINE``."""
CONTROL_COSINE = 0.8
OF_FALL = {"fp32": 1e-3, "bf16": 0.1}
"""Of losses that should be the same, as a share of how far they fall."""


class MissedError(Exception):
    """Numbers that are not what they should be."""

    def __init__(self, message: str, numbers: dict[str, Any]) -> None:
        super().__init__(message)
        self.numbers = numbers


def require(holds: bool, otherwise: str, numbers: dict[str, Any]) -> None:
    """Raises MissedError."""
    if not holds:
        raise MissedError(otherwise, numbers)


def require_below(limit: float, name: str, found: dict[str, Any]) -> None:
    """Of the number's size; a NaN is below nothing."""
    require(abs(found[name]) < limit, f"{name} is {found[name]:.2g}, not below {limit:g}", found)


def require_apart(dtype: str, name: str, found: dict[str, Any]) -> None:
    """Within ``ALIKE``, which the control misses ten times over: else it would show nothing."""
    limit = ALIKE[dtype]
    require_below(limit, name, found)
    control = found["control_against_alone"]
    require(control > 10 * limit, f"the control is only {control:.2g} apart", found)


def require_cosine(dtype: str, found: dict[str, Any]) -> None:
    """Of gradients that should be the same."""
    least = found["least_cosine"]
    require(least > COSINES[dtype], f"a parameter's gradients are at {least:.4f}", found)
