"""
How many times a proxy's compute do raw bytes need for the same score? The table and the picture of
it in runs/README.md.

    python runs/findings.py multiplier --train     makes the runs that are missing, in hours
    python runs/multiplier.py                      prints the multipliers
    python runs/multiplier.py --plot               and draws them (needs matplotlib)

In brackets stands a 95 % interval over seeds. A > says: more than raw bytes' largest budget can
show; a < less than their smallest.
"""
import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from findings import MORE_RAW, MULTIPLIED, SETTINGS, STUDIES, heading, runs_of, values_of

FIGURE = Path(__file__).parent / "results" / "multiplier.png"
DRAWS = 10_000  # for an interval

# -----------------------------------------------------------------------------
# scores: the larger the better, on scales on which seeds differ by about as much at every budget


def fewer_bits(bits):
    return -np.log(bits)


def log_odds(share):
    share = np.clip(share, 0.001, 0.999)  # of 0 and 1 they are infinite
    return np.log(share / (1 - share))


# a result: the heading of its column, and its score
MEASURES = {
    "bpb": ("bits per byte", fewer_bits),
    "bpb_solutions": ("of solutions", fewer_bits),
    "pass@1": ("pass@1", log_odds),
}
PROXIES = ("tokenizer", "neural")
SIZES = ("nano", "micro")

# -----------------------------------------------------------------------------
# a multiplier and its interval


@dataclass
class Multiplier:
    """The FLOPs that raw bytes need to be as good as a proxy, over the proxy's own."""
    found: float
    low: float       # of a 95 % interval over seeds
    high: float
    smallest: float  # what raw bytes' smallest and largest budgets can show
    largest: float

    def __str__(self):
        if self.is_beyond(self.low):
            return self.text(self.low)
        return f"{self.text(self.found)} ({self.text(self.low)} to {self.text(self.high)})"

    def is_beyond(self, value):
        """Whether a value is what raw bytes' largest budget can show, so that it may be more."""
        return np.isclose(value, self.largest)

    def text(self, value):
        if self.is_beyond(value):
            return f">{value:.2f}"
        return f"<{value:.2f}" if np.isclose(value, self.smallest) else f"{value:.2f}"


def needed_flops(budgets, scores, goal):
    """The FLOPs at which a method reaches `goal`, between its budgets on a line through (log FLOPs,
    score). A budget that is no better than a smaller one is left out.

    Returns the largest budget if the goal is above all scores, the smallest if it is below them.
    budgets: FLOPs, rising. scores: there, larger ones better.
    """
    best_before = np.maximum.accumulate(np.append(-np.inf, scores[:-1]))
    better = scores > best_before
    log_flops = np.log(budgets)
    return np.exp(np.interp(goal, scores[better], log_flops[better], right=log_flops[-1]))


def pooled_variance(groups):
    """(the variance that groups of seeds have in common, its degrees of freedom)"""
    degrees = sum(len(group) - 1 for group in groups)
    squares = sum(len(group) * np.var(group) for group in groups)
    return squares / degrees, degrees


def drawn_means(rng, seeds, variance, degrees):
    """What the mean of some seeds may be in truth, from Student's t: (DRAWS,)."""
    error = (variance / len(seeds)) ** 0.5
    return np.mean(seeds) + error * rng.standard_t(degrees, DRAWS)


def compare(raw_scores, proxy_scores, flops):
    """The Multiplier of a proxy, trained for `flops` FLOPs.

    raw_scores: {FLOPs: scores of the seeds}, some budget's of two or more; all share one variance.
    proxy_scores: of two seeds or more.
    """
    budgets = sorted(raw_scores)
    raw_means = np.array([np.mean(raw_scores[budget]) for budget in budgets])
    found = needed_flops(budgets, raw_means, np.mean(proxy_scores))

    rng = np.random.default_rng(0)
    variance, degrees = pooled_variance(raw_scores.values())
    drawn_raw = [drawn_means(rng, raw_scores[budget], variance, degrees) for budget in budgets]
    drawn_goals = drawn_means(rng, proxy_scores, *pooled_variance([proxy_scores]))
    drawn = []
    for scores, goal in zip(np.transpose(drawn_raw), drawn_goals):
        drawn.append(needed_flops(budgets, scores, goal))
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Multiplier(found / flops, low / flops, high / flops, budgets[0] / flops,
                      budgets[-1] / flops)


# -----------------------------------------------------------------------------
# what was measured


def scores_of(method, size, flops, key):
    """The scores of a method's seeds."""
    flags = MULTIPLIED[heading(size, flops)][method]
    _, score = MEASURES[key]
    return [score(value) for value in values_of(runs_of(flags, STUDIES["multiplier"]), key)]


def measured(proxy, size, flops, key):
    """A proxy's Multiplier; None if there are too few runs."""
    raw_scores = {}
    for of_size, budget in sum(SETTINGS.values(), MORE_RAW):  # all that raw bytes were trained with
        if of_size == size:
            scores = scores_of("raw bytes", size, budget, key)
            if scores:
                raw_scores[budget] = scores
    proxy_scores = scores_of(f"proxy: {proxy}", size, flops, key)
    seeds = sum(map(len, raw_scores.values()))
    # a line needs two points, a variance two seeds of something
    if len(raw_scores) < 2 or seeds == len(raw_scores) or len(proxy_scores) < 2:
        return None
    return compare(raw_scores, proxy_scores, flops)


def print_multipliers():
    print(" " * 24 + "".join(f"{heading:>23}" for heading, _ in MEASURES.values()))
    for settings in SETTINGS.values():
        for size, flops in settings:
            for proxy in PROXIES:
                multipliers = [measured(proxy, size, flops, key) for key in MEASURES]
                cells = [str(each) if each else "" for each in multipliers]
                if any(cells):
                    name = f"{size} {flops:.0e}, {proxy}"
                    print(f"{name:24}" + "".join(f"{cell:>23}" for cell in cells))


# -----------------------------------------------------------------------------
# the picture


def draw(axes, proxy, key):
    """Multipliers by size, in a colour for each number of symbols that a parameter has read. An
    arrow: the interval goes on beyond raw bytes' largest budget; a hollow point: so may the point.
    """
    for number, (symbols, settings) in enumerate(SETTINGS.items()):
        color = f"C{number}"
        axes.plot([], [], "o", color=color, label=f"{symbols}")
        for size, flops in settings:
            found = measured(proxy, size, flops, key)
            if found is None:
                continue
            x = SIZES.index(size) + 0.15 * (number - 1)
            axes.vlines(x, found.low, found.high, color=color)
            inside = "white" if found.is_beyond(found.found) else color
            axes.plot(x, found.found, "o", color=color, markerfacecolor=inside)
            if found.is_beyond(found.high):
                axes.annotate("", (x, found.high + 0.6), (x, found.high),
                              arrowprops={"arrowstyle": "->", "color": color})
    axes.axhline(1, color="0.7")
    axes.set(xlim=(-0.5, 1.5), ylim=(0, 8))
    axes.set_xticks(range(len(SIZES)), SIZES)
    axes.spines[["top", "right"]].set_visible(False)


def plot():
    try:
        from matplotlib.figure import Figure  # optional; without pyplot, it needs no display
    except ImportError:
        raise SystemExit("error: --plot needs matplotlib; pip install matplotlib") from None
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    draw(left, "neural", "pass@1")
    draw(right, "neural", "bpb_solutions")
    left.set(title="pass@1", ylabel="compute multiplier, neural proxy")
    right.set(title="bits per byte of solutions")
    left.legend(frameon=False, title="symbols a parameter", loc="upper left")
    figure.savefig(FIGURE, dpi=120)
    print(f"wrote {FIGURE.name}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", action="store_true", help="draw them, too (needs matplotlib)")
    options = parser.parse_args()
    print_multipliers()
    if options.plot:
        plot()


if __name__ == "__main__":
    main()
