"""
What is printed and drawn: the proxies' table, texts in colour, runs side by side, and a picture.

proxies.py, mix.py and eval.py pass in what is shown.
"""
import itertools
import os
import re
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lib.data import read_log
from lib.options import UserError
from lib.views import new_file


def with_progress(steps, what):
    """The steps, with a progress bar where stderr is a terminal."""
    return tqdm(steps, desc=what, leave=False, disable=None)


# -----------------------------------------------------------------------------
# the proxies' table

HEADING = f"{'':22} bytes/symbol bits/byte     MB/s    exact  drift 1% drift 10%"
LEGEND = """
bits/byte: of symbols of a fixed width. exact: samples decoded as they were. drift: edit distance of
the symbols, over their number, after 1 % or 10 % of the bytes are deleted. -whole: no segments."""
DRIFT_TEXTS = 60  # for the drift: edit distance takes time quadratic in the length


def levenshtein(a, b):
    """Edit distance of two arrays over the longer one's length (Levenshtein 1966): from 0 to 1.

    The textbook's table of the distances between the beginnings of a and of b: a row for each
    symbol of a, one after another; at first the row for none.
    """
    columns = np.arange(len(b) + 1)
    row = columns
    for symbol in a:
        delete = row[1:] + 1
        replace = row[:-1] + (b != symbol)
        without_insertion = np.concatenate(([row[0] + 1], np.minimum(delete, replace)))
        # Insertion asks the left neighbour, in the same row: new[j] = min(new[j], new[j - 1] + 1).
        # Less the column's number, that is the minimum of all that stands to the left.
        row = np.minimum.accumulate(without_insertion - columns) + columns
    return float(row[-1]) / max(len(a), len(b), 1)


def drift(proxy, texts, rate):
    """Mean distance between the symbols of a text with and without the share `rate` of its bytes.

    The paper's measure of stability: 0 if no symbol changes, 1 if all do.
    """
    rng = np.random.default_rng(0)
    damaged = []
    for text in texts:
        kept = rng.random(len(text)) >= rate
        damaged.append(np.frombuffer(text, np.uint8)[kept].tobytes())
    before, after = proxy.encode_batch(texts), proxy.encode_batch(damaged)
    return float(np.mean(list(map(levenshtein, before, after))))


def collisions(proxy, texts):
    """What a fuzzy proxy can't tell apart: (share, close, white) of the distinct segments of texts.

    share: of the segments, those that have their code in common with another. close, white: of the
    pairs with a common code, those with a common prefix of at least 0.8 of the longer one (the
    paper's measure), and those that differ in white space alone.
    """
    with_code = defaultdict(set)  # {code: the segments that have it}
    for text in texts:
        for segment in filter(None, proxy.segments(text)):
            with_code[tuple(proxy.encode_segment(segment))].add(segment)
    sharing, close, white = [], [], []
    for segments in with_code.values():
        sharing += [len(segments) > 1] * len(segments)
        for a, b in itertools.combinations(segments, 2):
            close.append(len(os.path.commonprefix((a, b))) >= 0.8 * max(len(a), len(b)))
            white.append(b"".join(a.split()) == b"".join(b.split()))
    return tuple(sum(counted) / max(1, len(counted)) for counted in (sharing, close, white))


def table_row(proxy, texts):
    """The line for a proxy: what is measured of it on `texts`, a list of bytes."""
    began = time.perf_counter()
    codes = proxy.encode_batch(texts)
    seconds = time.perf_counter() - began
    n_bytes = sum(map(len, texts))
    ratio = n_bytes / sum(map(len, codes))
    bits = np.log2(proxy.n_symbols) / ratio  # a byte, of symbols of a fixed width
    is_exact = [proxy.decode(code) == text for code, text in zip(codes, texts)]
    drift_1 = drift(proxy, texts[:DRIFT_TEXTS], 0.01)
    drift_10 = drift(proxy, texts[:DRIFT_TEXTS], 0.10)
    return (f"{proxy.name:22} {ratio:12.2f} {bits:9.2f} {n_bytes / seconds / 1e6:8.2f} "
            f"{np.mean(is_exact):8.1%} {drift_1:9.3f} {drift_10:9.3f}")


def print_proxy_table(title, proxies, texts):
    """Print a row for each of `proxies`, and the collisions of the fuzzy ones.

    title: the corpus's name; texts: held-out samples of it, a list of bytes.
    """
    lengths = list(map(len, texts))
    print(f"\n{title}: {len(texts)} held-out samples of up to {max(lengths):,} bytes, "
          f"{sum(lengths) / 1e6:.2f} MB")
    print(HEADING)
    for proxy in proxies:
        print(table_row(proxy, texts), flush=True)  # a row may take a minute
    print(LEGEND)
    for proxy in proxies:
        if proxy.fuzzy and hasattr(proxy, "segments"):  # one of your own may have none
            share, close, white = collisions(proxy, texts)
            print(f"{proxy.name}: {share:.1%} of the distinct segments share their code with "
                  f"another,\n{close:.1%} of such pairs have a common prefix of at least 0.8; "
                  f"{white:.1%} differ in white space alone.")


# -----------------------------------------------------------------------------
# texts in colour

BOLD, GREEN, PURPLE, PLAIN = "\033[1m", "\033[32m", "\033[35m", "\033[0m"
COLOUR = {"raw": GREEN, "comp": PURPLE}
BACKGROUNDS = ("\033[30;46m", "\033[97;44m")  # black on cyan, white on blue


def show_symbols(proxy, text):
    """Print `text` (bytes) as the proxy's symbols, on alternating backgrounds.

    If it is not known what a symbol stands for, the first symbols are printed as numbers.
    """
    symbols = proxy.encode(text)
    ratio = len(text) / max(1, len(symbols))
    print(f"\n{BOLD}{proxy.name}: {len(text)} bytes, {len(symbols)} symbols, "
          f"{ratio:.2f} bytes a symbol{PLAIN}")
    if proxy.symbol_lengths is None:
        print(f"a symbol stands for no piece of the text: {symbols[:12].tolist()} ...")
        return
    for i, symbol in enumerate(symbols):
        piece = proxy.decode([symbol]).decode("utf-8", "replace")
        print(BACKGROUNDS[i % 2] + piece.replace("\n", "⏎\n"), end="")
    print(PLAIN)


def show_context(title, samples):
    """Print the samples of a context, (view, text) each, text as bytes; None if it is cut short."""
    print(f"\n{BOLD}{title}{PLAIN}")
    for view, text in samples:
        shown = "(cut short, so it can't be decoded)"
        if text is not None:
            shown = text.decode("utf-8", "replace").rstrip("\n")
        print(f"{BOLD}<{view}>{PLAIN}{COLOUR[view]}{shown}{PLAIN}{BOLD}</{view}>{PLAIN}")


# -----------------------------------------------------------------------------
# runs side by side

# where a run lies and how it was started say nothing about its results
OPTIONS_OF_NO_INTEREST = ("out", "resume", "overwrite", "report")


def names_in(table):
    """The names in {run: {name: value}}, each once, in the order in which they first occur."""
    return list(dict.fromkeys(itertools.chain.from_iterable(table.values())))


def differing_options(options_of_runs):
    """The part of {run: {name: value}} in which the runs differ, values as text."""
    differing = {run: {} for run in options_of_runs}
    for name in names_in(options_of_runs):
        values = {run: str(options.get(name, "")) for run, options in options_of_runs.items()}
        if name not in OPTIONS_OF_NO_INTEREST and len(set(values.values())) > 1:
            for run, value in values.items():
                differing[run][name] = value
    return differing


def cell(results, name):
    """One result as text: 0.1234 [0.100, 0.150], 1,234 for a count, "" where there is none."""
    value = results.get(name, "")
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    if f"{name}_95" not in results:
        return f"{value:.4f}"
    low, high = results[f"{name}_95"]
    return f"{value:.4f} [{low:.3f}, {high:.3f}]"


def print_results(table):
    """Print a row for each number, a column for each run."""
    names = [name for name in names_in(table) if not name.endswith("_95")]
    name_width = max(map(len, names), default=0)
    lines = [f"{name:{name_width}}" for name in ["", *names]]  # the first is the heading
    for run, results in table.items():
        column = [run]
        for name in names:
            column.append(cell(results, name))
        width = max(map(len, column))
        for i, text in enumerate(column):
            lines[i] += f"  {text:>{width}}"
    print("\n".join(lines))


# -----------------------------------------------------------------------------
# the picture


def draw_curves(axes, runs):
    """Draw held-out bits per byte against training compute, for each run that has a log."""
    for number, run in enumerate(runs):
        path = Path(run) / "log.jsonl"
        if not path.exists():
            continue
        flops, bits = [], []
        for row in read_log(path):
            # 0 FLOPs, before training, have no logarithm; a corpus that may not be shown raw has no
            # bits per raw byte
            if row["flops"] > 0 and "val_raw" in row:
                flops.append(row["flops"])
                bits.append(row["val_raw"])
        axes.loglog(flops, bits, f"C{number}.-", label=run)
    axes.set(xlabel="training FLOPs", ylabel="bits per byte, held-out raw bytes")
    axes.yaxis.set_major_formatter("{x:.2g}")  # "0.4", not a power of ten
    axes.yaxis.set_minor_formatter("{x:.2g}")


def draw_pass(axes, table):
    """Draw pass@k with its interval: a group of points for each k, a point for each run."""
    ks = [name for name in names_in(table) if re.fullmatch(r"pass@\d+", name)]
    for number, (run, results) in enumerate(table.items()):
        measured = [name for name in ks if name in results]
        if not measured:
            continue  # and so it is not in the legend
        beside_the_tick = 0.4 * (number + 0.5) / len(table) - 0.2
        x = [ks.index(name) + beside_the_tick for name in measured]
        y = np.array([results[name] for name in measured])
        low, high = np.array([results[f"{name}_95"] for name in measured]).T
        # not below 0: by rounding it may be -1e-17, which matplotlib refuses
        errors = np.maximum(0, [y - low, high - y])
        axes.errorbar(x, y, errors, fmt=f"C{number}o", capsize=3, label=run)
    axes.set(xticks=range(len(ks)), xticklabels=ks, ylim=(0, 1),
             ylabel="share of problems, 95 % intervals")


def plot(table, path):
    """Draw {run: results} to the PNG at `path`: bits per byte against compute on the left, pass@k
    on the right. Raises UserError."""
    try:
        from matplotlib.figure import Figure  # optional; without pyplot, it needs no display
    except ImportError:
        raise UserError(f"--plot={path}: needs matplotlib; pip install matplotlib") from None
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_curves(left, table)
    draw_pass(right, table)
    for axes in (left, right):
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    with new_file(path) as file:
        figure.savefig(file, format="png", dpi=150)
    print(f"wrote {path}")
