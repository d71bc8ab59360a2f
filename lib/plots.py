"""
The results of several runs side by side: a text table, and a figure (which needs matplotlib).

Called by eval.py at its end. A `table` is {run: {name: number, or a text such as "21 of 164"}}; a
name with _95 at its end has the 95 % interval, [low, high], of the number without.
"""
import io
import re
from pathlib import Path

from lib.rows import read_log
from lib.options import UserError
from lib.store import write_file

# -----------------------------------------------------------------------------
# the text table

# where a run lies and how it was started say nothing about its results
OPTIONS_OF_NO_INTEREST = ("out", "resume", "overwrite", "report")
NARROWEST = 20  # characters of a column; a wider cell makes it wider


def names_in(table):
    """The names of all results, each once, in the order in which they first occur."""
    names = {}
    for results in table.values():
        names.update(dict.fromkeys(results))
    return list(names)


def cell(results, name):
    """One result as text: 0.1234 [0.100, 0.150], 1,234 for a count, "" where there is none."""
    if name not in results:
        return ""
    value, interval = results[name], results.get(f"{name}_95")
    if isinstance(value, str):
        return value
    text = f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
    if interval:
        low, high = interval
        text += f" [{low:.3f}, {high:.3f}]"
    return text


def differing_options(options_of_runs):
    """{run: {name: value as text}} of the options in which the runs differ.

    options_of_runs: {run: {name: value}}.
    """
    differing = {run: {} for run in options_of_runs}
    for name in names_in(options_of_runs):
        values = {run: str(options.get(name, "")) for run, options in options_of_runs.items()}
        if name not in OPTIONS_OF_NO_INTEREST and len(set(values.values())) > 1:
            for run, value in values.items():
                differing[run][name] = value
    return differing


def print_results(table):
    """Print a row for each number, a column for each run."""
    names = []
    for name in names_in(table):
        if not name.endswith("_95"):
            names.append(name)
    name_width = max(map(len, names), default=0)
    widths = {}
    for run, results in table.items():
        texts = [run, *(cell(results, name) for name in names)]
        widths[run] = max(NARROWEST, *map(len, texts))

    heading = " " * name_width
    for run in table:
        heading += f"  {run:>{widths[run]}}"
    print(heading)
    for name in names:
        row = f"{name:{name_width}}"
        for run, results in table.items():
            row += f"  {cell(results, name):>{widths[run]}}"
        print(row)


# -----------------------------------------------------------------------------
# the figure

# Runs differ in these and in their shade of grey, so that the figure can be printed.
LINES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v")
HATCHES = ("", "//", "..", "xx")


def read_curve(path):
    """The points (FLOPs, bits per byte) of a run's log.jsonl: two lists."""
    flops, bits = [], []
    for _, row in read_log(path):
        # the first row is from before training, and 0 has no logarithm; a corpus that may not be
        # shown raw has no bits per raw byte
        if row["flops"] > 0 and "val_raw" in row:
            flops.append(row["flops"])
            bits.append(row["val_raw"])
    return flops, bits


def draw_curves(axes, runs):
    """Draw held-out bits per byte against training compute, for each run that has a log."""
    for number, run in enumerate(runs):
        path = Path(run) / "log.jsonl"
        if not path.exists():
            continue
        grey = 0.18 * (number % len(MARKERS))  # from 0, which is black, towards 1, which is white
        axes.plot(*read_curve(path), color=str(grey), label=run,
                  linestyle=LINES[number % len(LINES)],
                  marker=MARKERS[number % len(MARKERS)])
    axes.set(xlabel="training FLOPs", ylabel="bits per byte, held-out raw bytes",
             xscale="log", yscale="log")
    axes.yaxis.set_major_formatter("{x:.2g}")  # "1.5", not a power of ten
    axes.yaxis.set_minor_formatter("{x:.2g}")


def draw_run(axes, ticks, run, results, number, n_runs):
    """Draw the bars of the run with this number. ticks: {name of a result: x of its group}."""
    width = 0.8 / n_runs  # the bars of a group take 0.8 of the room from one tick to the next
    offset = width * (number + 0.5) - 0.4
    x, heights, below, above = [], [], [], []
    for name, tick in ticks.items():
        if name not in results:
            continue
        value, (low, high) = results[name], results[f"{name}_95"]
        x.append(tick + offset)
        heights.append(value)
        below.append(max(0.0, value - low))  # by rounding -1e-17, say, which matplotlib refuses
        above.append(max(0.0, high - value))
    if not x:
        return  # and so it is not in the legend
    grey = 0.35 + 0.6 * number / max(1, n_runs - 1)
    axes.bar(x, heights, width, yerr=[below, above], capsize=3, label=run,
             color=str(grey), edgecolor="black", hatch=HATCHES[number % len(HATCHES)])


def draw_bars(axes, table):
    """Draw pass@k with its interval: a group of bars for each k, a bar for each run."""
    ticks = {}
    for name in names_in(table):
        if re.fullmatch(r"pass@\d+", name):
            ticks[name] = len(ticks)
    for number, (run, results) in enumerate(table.items()):
        draw_run(axes, ticks, run, results, number, len(table))
    axes.set(xticks=list(ticks.values()), xticklabels=list(ticks),
             ylabel="share of problems, 95 % intervals", ylim=(0, 1))


def draw(table):
    """A matplotlib Figure: curves on the left, bars on the right. Raises ImportError."""
    from matplotlib.figure import Figure  # optional; without pyplot, it needs no display
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_curves(left, table)
    draw_bars(right, table)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    return figure


def plot(table, path):
    """Draw bits per byte against compute, and pass@k, to the PNG at `path`. Raises UserError."""
    try:
        figure = draw(table)
    except ImportError:
        raise UserError(f"--plot={path}: needs matplotlib; pip install matplotlib") from None
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150)
    write_file(path, image.getvalue())
    print(f"wrote {path}")
