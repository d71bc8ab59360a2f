"""
What the proxies do to text: a table of ratio, speed and stability, and one text in colour.

Called by proxies.py, for --report and for `python proxies.py 'some text'`. The fitted proxies come
in as arguments. What a proxy needs to have:

    name                 its name in the table
    n_symbols            how many symbols there are
    symbol_lengths       the bytes that each symbol stands for, an int64 array; None if not known
    encode_batch(texts)  an array of symbols for each text
    decode(symbols)      the text, bytes
    bare_encode(text)    optional, may be None: the bare library call inside the encoder
    fuzzy                True if several texts may have the same symbols. Then it has, too:
    segments(text)       the pieces of the text that are coded on their own, a list of bytes
    encode_segment(s)    the symbols of one such piece, a list of int
"""
import io
import itertools
import numpy as np
import os
import re
import time
from collections import defaultdict
from dataclasses import dataclass
from lib.cut import cut_at_lines
from pathlib import Path
from lib.rows import read_log
from lib.options import UserError
from lib.store import write_file
from tqdm import tqdm


# -----------------------------------------------------------------------------
# stability: how many symbols change when a few bytes do


def levenshtein(a, b):
    """Edit distance of two arrays over the longer one's length (Levenshtein 1966): from 0 to 1.

    The textbook's table of distances between the beginnings of a and b, one row for each symbol
    of a. For a = [1, 2], b = [1, 3, 2]:

             1  3  2
          0  1  2  3     `row` before the first symbol of a
       1  1  0  1  2
       2  2  1  1  1     the distance is 1, the result 1/3
    """
    if len(a) == 0 or len(b) == 0:
        return float(len(a) != len(b))
    columns = np.arange(len(b) + 1)
    row = columns
    for symbol in a:
        delete = row[1:] + 1
        replace = row[:-1] + (b != symbol)
        without_insertion = np.concatenate(([row[0] + 1], np.minimum(delete, replace)))
        # Insertion asks the left neighbour, in the same row: new[j] = min(new[j], new[j - 1] + 1).
        # Less the column's number, that is the minimum of all that stands to the left.
        row = np.minimum.accumulate(without_insertion - columns) + columns
    return float(row[-1]) / max(len(a), len(b))


def delete_bytes(text, rate, rng):
    """`text` without the share `rate` of its bytes, drawn at random."""
    kept = rng.random(len(text)) >= rate
    return np.frombuffer(text, np.uint8)[kept].tobytes()


def stability(proxy, texts, rate, seed=0):
    """Mean distance between the symbols of a text with and without the share `rate` of its bytes.

    The paper's measure: 0 if no symbol changes, 1 if all do. Which bytes go is drawn by `seed`.
    """
    rng = np.random.default_rng(seed)
    damaged = [delete_bytes(text, rate, rng) for text in texts]
    codes = zip(proxy.encode_batch(texts), proxy.encode_batch(damaged))
    return float(np.mean([levenshtein(a, b) for a, b in codes]))


# -----------------------------------------------------------------------------
# collisions: which strings share their code


def strings_by_code(proxy, texts):
    """{code: the distinct segments of the texts that have it}."""
    strings = defaultdict(set)
    for text in texts:
        for segment in proxy.segments(text):
            code = tuple(proxy.encode_segment(segment))
            strings[code].add(segment)
    return strings


def have_long_common_prefix(a, b):
    """Do they begin alike, for at least 0.8 of the longer one? The paper's measure."""
    return len(os.path.commonprefix((a, b))) >= 0.8 * max(len(a), len(b))


def differ_in_white_space(a, b):
    """Are they the same but for white space?"""
    return b"".join(a.split()) == b"".join(b.split())


def collisions(proxy, texts):
    """(share, close, white) of the distinct segments of the texts.

    share: of the segments, those that have their code in common with another. close, white: of the
    pairs with a common code, those with a long common prefix, and those that differ in white space.
    """
    groups = list(strings_by_code(proxy, texts).values())
    n_segments = sum(len(group) for group in groups)
    n_sharing = n_pairs = n_close = n_white = 0
    for group in groups:
        if len(group) == 1:
            continue
        n_sharing += len(group)
        for a, b in itertools.combinations(group, 2):
            n_pairs += 1
            n_close += have_long_common_prefix(a, b)
            n_white += differ_in_white_space(a, b)
    return (n_sharing / max(1, n_segments),
            n_close / max(1, n_pairs),
            n_white / max(1, n_pairs))


# -----------------------------------------------------------------------------
# the table

COLUMNS = {  # heading: width
    "bytes/symbol": 12,
    "bits/byte": 9,
    "MB/s": 8,
    "of bare": 7,
    "exact": 8,
    "1-byte": 8,
    "drift 1%": 9,
    "drift 10%": 9,
}
LEGEND = """
of bare: speed over that of the bare tiktoken or gzip call. exact: samples decoded as they were.
1-byte: symbols that stand for one byte. drift: edit distance of the symbols, over their number,
after 1 % or 10 % of the bytes are deleted. -whole: without segmentation."""
DRIFT_TEXTS = 60  # for the drift: edit distance takes time quadratic in the length


def table_line(name, cells):
    widths = COLUMNS.values()
    padded = [f"{cell:>{width}}" for cell, width in zip(cells, widths)]
    return " ".join([f"{name:22}", *padded])


def seconds(work):
    """The time that a call of `work` takes: the best of three after a warm-up."""
    work()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def speed_over_bare(proxy, texts, encoding_time):
    """The share of the bare library call's speed that the encoder reaches; "" if there is none."""
    bare_encode = getattr(proxy, "bare_encode", None)
    if bare_encode is None:
        return ""
    bare_time = seconds(lambda: [bare_encode(text) for text in texts])
    return f"{bare_time / encoding_time:.2f}"


def share_of_single_bytes(proxy, symbols):
    """The share of the symbols that stand for one byte; "" if symbols stand for no known bytes."""
    if proxy.symbol_lengths is None:
        return ""
    return f"{np.mean(proxy.symbol_lengths[symbols] == 1):.1%}"


@dataclass
class Measured:
    """What the table says of a proxy, measured on some texts."""
    name: str
    n_symbols: int
    ratio: float     # bytes a symbol
    speed: float     # bytes a second
    of_bare: str
    exact: float     # share of the texts that are decoded as they were
    one_byte: str
    drift_1: float   # after 1 % of the bytes are deleted
    drift_10: float

    @property
    def changed(self):
        """How many symbols one deleted byte changes, on average."""
        return self.drift_1 / (0.01 * self.ratio)


def measure(proxy, texts):
    """A Measured of a proxy on `texts`, a list of bytes."""
    codes = proxy.encode_batch(texts)
    symbols = np.concatenate(codes)
    n_bytes = sum(len(text) for text in texts)
    exact = [proxy.decode(code) == text for code, text in zip(codes, texts)]
    encoding_time = seconds(lambda: proxy.encode_batch(texts))
    return Measured(
        name=proxy.name,
        n_symbols=proxy.n_symbols,
        ratio=n_bytes / len(symbols),
        speed=n_bytes / encoding_time,
        of_bare=speed_over_bare(proxy, texts, encoding_time),
        exact=np.mean(exact),
        one_byte=share_of_single_bytes(proxy, symbols),
        drift_1=stability(proxy, texts[:DRIFT_TEXTS], 0.01),
        drift_10=stability(proxy, texts[:DRIFT_TEXTS], 0.10))


def table_row(measured):
    """The line of a Measured in the table, a string."""
    return table_line(measured.name, [
        f"{measured.ratio:.2f}",
        f"{np.log2(measured.n_symbols) / measured.ratio:.2f}",
        f"{measured.speed / 1e6:.2f}",
        measured.of_bare,
        f"{measured.exact:.1%}",
        measured.one_byte,
        f"{measured.drift_1:.3f}",
        f"{measured.drift_10:.3f}",
    ])


# A symbol carries over what is learned of it if the same text gives the same symbols. The proxies
# that do so here change 1 to 2 symbols for a deleted byte, those that do not 10 and more.
STABLE = 2.5
FEW_SYMBOLS = 4096  # more are rows of the output layer that a small model has no text to learn
COMPRESSES = 1.2    # bytes a symbol


def advice(measured):
    """One line: of the stable proxies with few symbols the one that compresses most.

    measured: a Measured of each proxy.
    """
    suited = [proxy for proxy in measured if proxy.exact == 1 and proxy.changed <= STABLE
              and proxy.n_symbols <= FEW_SYMBOLS and proxy.ratio >= COMPRESSES]
    if not suited:
        return "advice: raw bytes; no proxy with few and stable symbols compresses this text"
    best = max(suited, key=lambda proxy: proxy.ratio)
    worst = max(measured, key=lambda proxy: proxy.changed)
    return (f"advice: {best.name}, {best.ratio:.2f} bytes a symbol; a deleted byte changes "
            f"{best.changed:.1f} of its symbols ({worst.name}: {worst.changed:.0f})")


def print_collisions(proxy, texts):
    share, close, white = collisions(proxy, texts)
    print(f"{proxy.name}: {share:.1%} of the distinct segments share their code with another,")
    print(f"{close:.1%} of such pairs have a common prefix of at least 0.8; "
          f"{white:.1%} differ in white space alone.")


def held_out_samples(corpus, longest):
    """Held-out text to compare proxies on: half a megabyte, a list of at most `longest` bytes
    each."""
    samples = []
    for document in corpus.documents():
        if document.held_out:
            samples += cut_at_lines(document.text, longest)
    step = max(1, sum(map(len, samples)) // 500_000)
    return samples[::step]


def print_proxy_table(title, proxies, texts):
    """Print a row for each of `proxies`, the collisions of the fuzzy ones, and one line of advice.

    title: the corpus's name; texts: held-out samples of it, a list of bytes.
    """
    megabytes = sum(len(text) for text in texts) / 1e6
    longest = max(map(len, texts))
    print(f"\n{title}: {len(texts)} held-out samples of up to {longest:,} bytes, "
          f"{megabytes:.2f} MB; {os.cpu_count()} cores")
    print(table_line("", COLUMNS))
    measured = []
    for proxy in proxies:
        measured.append(measure(proxy, texts))
        print(table_row(measured[-1]), flush=True)  # a row may take a minute
    print(LEGEND)
    for proxy in proxies:
        if proxy.fuzzy:
            print_collisions(proxy, texts)
    print(f"\n{advice(measured)}")


# -----------------------------------------------------------------------------
# one text in colour

BACKGROUNDS = ("\033[30;46m", "\033[97;44m")  # black on cyan, white on blue


def show_symbols(proxy, text):
    """Print `text` (bytes) as the proxy's symbols, on alternating backgrounds.

    If it is not known what a symbol stands for, the first symbols are printed as numbers.
    """
    symbols = proxy.encode_batch([text])[0]
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


BOLD, GREEN, PURPLE, PLAIN = "\033[1m", "\033[32m", "\033[35m", "\033[0m"
COLOUR = {"raw": GREEN, "comp": PURPLE}


def show_context(title, samples):
    """Print the samples of a context, (view, text) each, text as bytes; None if it is cut short."""
    print(f"\n{BOLD}{title}{PLAIN}")
    for view, text in samples:
        shown = "(cut short, so it can't be decoded)"
        if text is not None:
            shown = text.decode("utf-8", "replace").rstrip("\n")
        print(f"{BOLD}<{view}>{PLAIN}{COLOUR[view]}{shown}{PLAIN}{BOLD}</{view}>{PLAIN}")


def with_progress(steps, what):
    """The steps, with a progress bar where stderr is a terminal."""
    return tqdm(steps, desc=what, leave=False, disable=None)
