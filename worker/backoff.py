"""How long the worker waits before it retries.

The wait doubles with each attempt, up to a bound. Jitter keeps workers from all returning at once.
"""

import random

from worker.errors import BreakerOpen, MustHold

Bounds = tuple[float, float]
"""The shortest and the longest wait, in seconds."""

# The longest wait plus the time to open a session stays below ten seconds, so the worker is back
# within ten seconds of the broker's recovery.
RECONNECT_SECONDS: Bounds = (0.5, 8.0)
HOLD_SECONDS: Bounds = (0.1, 2.0)
# A fault that affects every message rarely goes away without a restart.
BREAKER_SECONDS: Bounds = (1.0, 30.0)


def reconnecting(attempt: int) -> float:
    """Return the seconds to wait after this many failed or lost sessions in a row."""
    return _jittered(attempt, RECONNECT_SECONDS)


def holding(error: MustHold, attempt: int) -> float:
    """Return the seconds to wait after this many failed attempts to settle a batch."""
    return _jittered(attempt, BREAKER_SECONDS if isinstance(error, BreakerOpen) else HOLD_SECONDS)


def _jittered(attempt: int, bounds: Bounds) -> float:
    shortest, longest = bounds
    # The exponent is bounded, because a float overflows when attempts go on for weeks.
    return random.uniform(0.5, 1.0) * min(longest, shortest * 2.0 ** min(attempt - 1, 30))
