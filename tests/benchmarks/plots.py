"""The plots of docs/performance.md."""

from collections.abc import Callable
from pathlib import Path
from statistics import median

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from tests.benchmarks.bench import Result
from tests.benchmarks.contenders import CONTENDERS, WORKER
from tests.benchmarks.figures import rates

INCHES = (8.0, 3.6)
OURS, OTHERS, SECOND = "#1f6feb", "#9aa4b2", "#d1242f"
LOADS = ("#1f6feb", "#8250df", "#d1242f")
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")
COUNT = FuncFormatter(lambda value, _: f"{value:,.0f}")


def draw(results: Result, folder: Path) -> list[str]:
    """Draw what there are figures for; return the names of the files, in page order."""
    folder.mkdir(parents=True, exist_ok=True)
    makers: dict[str, Callable[[Axes, Result], None]] = {
        "throughput": _throughput,
        "latency": _latency,
        "batch_size": _batch_size,
        "log_size": _log_size,
        "outage": _outage,
    }
    drawn = []
    # Keep text as text, and produce equal files for equal figures.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "performance", "font.size": 10}):
        for name, make in makers.items():
            if name in results:
                figure = Figure(figsize=INCHES, layout="constrained")
                FigureCanvasSVG(figure)
                axes = figure.add_subplot()
                axes.spines[["top", "right"]].set_visible(False)
                make(axes, results[name])
                figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
                drawn.append(f"{name}.svg")
    return drawn


def _throughput(axes: Axes, part: Result) -> None:
    names = list(reversed(part["runs"]))
    medians = [median(rates(part["runs"][name])) for name in names]
    spreads = [
        [rate - min(rates(part["runs"][name])) for name, rate in zip(names, medians, strict=True)],
        [max(rates(part["runs"][name])) - rate for name, rate in zip(names, medians, strict=True)],
    ]
    bars = axes.barh(
        [CONTENDERS[name].title for name in names],
        medians,
        xerr=spreads,
        color=[OURS if name == WORKER else OTHERS for name in names],
        ecolor="#57606a",
    )
    # After the end of the error bar, which would otherwise cross the text.
    labels = [f"  {rate:,.0f}" for rate in medians]
    for bar, label, above in zip(bars, labels, spreads[1], strict=True):
        place = bar.get_y() + bar.get_height() / 2
        axes.text(bar.get_width() + above, place, label, va="center")
    axes.margins(x=0.12)
    axes.xaxis.set_major_formatter(COUNT)
    axes.set_xlabel("messages/s: median, least and greatest")


def _latency(axes: Axes, part: Result) -> None:
    for each, colour in zip(part["loads"], LOADS, strict=False):
        label = f"{each['name']}: {each['rate']:,.0f} messages/s"
        shares, delays = zip(*each["curve_ms"], strict=True)
        axes.plot(delays, shares, color=colour, label=label)
        shares, delays = zip(*each["floor"]["curve_ms"], strict=True)
        axes.plot(delays, shares, color=colour, linestyle=":")
    for share in (0.5, 0.99):
        axes.axhline(share, color="#d0d7de", linewidth=0.8, zorder=0)
        axes.annotate(f"p{share * 100:.0f}", (1, share), xycoords=("axes fraction", "data"))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(PLAIN)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("milliseconds from publish to committed")
    axes.set_ylabel("share of messages")
    axes.legend(frameon=False, loc="lower right")


def _batch_size(axes: Axes, part: Result) -> None:
    sizes = [each["size"] for each in part["sizes"]]
    axes.plot(
        sizes,
        [median(rates(each["runs"])) for each in part["sizes"]],
        marker="o",
        color=OURS,
    )
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(COUNT)
    axes.set_xlabel("WORKER_BATCH_SIZE")
    axes.set_ylabel("messages/s", color=OURS)
    beside = axes.twinx()
    beside.plot(sizes, [each["p99_ms"] for each in part["sizes"]], marker="s", color=SECOND)
    beside.set_yscale("log")
    beside.yaxis.set_major_formatter(PLAIN)
    beside.set_ylabel(f"p99 at {part['rate']:,.0f}/s, ms", color=SECOND)


def _log_size(axes: Axes, part: Result) -> None:
    sizes = [each["size"] / 1_000_000 for each in part["sizes"]]
    found = [rates(each["runs"]) for each in part["sizes"]]
    axes.plot(sizes, [median(each) for each in found], marker="o", color=OURS)
    axes.fill_between(
        sizes, [min(each) for each in found], [max(each) for each in found], color=OURS, alpha=0.15
    )
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(COUNT)
    axes.set_xlabel("million messages in the log")
    axes.set_ylabel("messages/s")


def _outage(axes: Axes, part: Result) -> None:
    moments, depths = zip(*part["depths"], strict=True)
    axes.plot(moments, depths, color=OURS)
    axes.axvspan(part["stopped"], part["started"], color="#d0d7de", alpha=0.5)
    middle = (part["stopped"] + part["started"]) / 2
    axes.annotate("no worker", (middle, part["most"]), ha="center", va="bottom")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(COUNT)
    axes.set_xlabel(f"seconds, with {part['rate']:,.0f} messages/s published all the time")
    axes.set_ylabel("messages waiting")
