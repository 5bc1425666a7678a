"""Memory that was freed goes back to the system between training and measuring.

On the CPU glibc keeps what torch frees, a layer's activations for example, for the next who asks;
the other part of a run asks for other sizes, and both would add up. Within a part it stays kept: to
give it back there costs a step a quarter of its time (docs/decisions.md).
"""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress


def give_back() -> None:
    """Collect garbage, and hand freed memory back where the C library can: glibc's malloc_trim."""
    gc.collect()
    # Other C libraries lack the function; Windows has no handle of the process itself.
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
