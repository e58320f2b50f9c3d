"""How long the worker waits before it tries again what has failed.

Twice as long each time, up to a bound, and with jitter, so that workers do not all return at once.
"""

import random

from worker.errors import BreakerOpen, MustHold

Bounds = tuple[float, float]
"""The shortest and the longest wait, in seconds."""

# Together with the time to open below ten seconds: what has been cured is noticed within them.
RECONNECT_SECONDS: Bounds = (0.5, 8.0)
HOLD_SECONDS: Bounds = (0.1, 2.0)
# What fails for every message is seldom cured without a restart.
BREAKER_SECONDS: Bounds = (1.0, 30.0)


def reconnecting(attempt: int) -> float:
    """Return the seconds to wait after this many failures to keep a session."""
    return _jittered(attempt, RECONNECT_SECONDS)


def holding(error: MustHold, attempt: int) -> float:
    """Return the seconds to wait after this many failures to settle a batch."""
    return _jittered(attempt, BREAKER_SECONDS if isinstance(error, BreakerOpen) else HOLD_SECONDS)


def _jittered(attempt: int, bounds: Bounds) -> float:
    shortest, longest = bounds
    # Bounded before it is a float: attempts may go on for weeks.
    return random.uniform(0.5, 1.0) * min(longest, shortest * 2.0 ** min(attempt - 1, 30))
