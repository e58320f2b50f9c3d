"""Medians, spreads and ratios of measurements."""

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any

from tests.benchmarks.bench import Result

Runs = Sequence[dict[str, Any]]


def rates(runs: Runs) -> list[float]:
    """Return the rate of each run, in messages per second."""
    return [run["messages"] / run["seconds"] for run in runs]


def median_rate(part: Result, name: str) -> float:
    """Return the median rate of one contender."""
    return median(rates(part["runs"][name]))


def spread(values: Iterable[float], shown: Callable[[float], str]) -> str:
    """Return the median of several figures, with the minimum and the maximum."""
    ordered = sorted(values)
    middle = shown(median(ordered))
    return f"{middle} ({shown(ordered[0])}..{shown(ordered[-1])})" if ordered[1:] else middle


def microseconds(runs: Runs, field: str) -> float:
    """Return the median CPU time per message."""
    each: list[float] = [run[field] / run["messages"] * 1_000_000 for run in runs]
    return median(each)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def thousands(value: float) -> str:
    """Return a number for display."""
    return f"{value:,.0f}"


def in_rounds(part: Result) -> str:
    """Return the end of a title: how often a part was measured, and what its figures are."""
    if part["rounds"] == 1:
        return ", one round"
    return f", {part['rounds']} rounds in turn: median (least..greatest)"
