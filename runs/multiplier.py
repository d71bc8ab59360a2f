"""
How many times a proxy's compute do raw bytes need for the same score? The tables and the picture
of it in runs/README.md.

    python runs/findings.py multiplier --train     makes the runs that are missing, in hours
    python runs/multiplier.py                      prints the multipliers
    python runs/multiplier.py --plot               and draws them (needs matplotlib)

In brackets stands a 95 % interval over seeds. With > the proxy is better than raw bytes are at
their largest budget, with < worse than at their smallest.
"""
import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from findings import MORE_RAW, MULTIPLIED, SETTINGS, STUDIES, heading, runs_of, values_of

FIGURE = Path(__file__).parent / "results" / "multiplier.png"
DRAWS = 10_000  # for an interval

# key of a result: (heading, 1 if a larger number is better, else -1)
MEASURES = {
    "bpb": ("bits per byte", -1),
    "bpb_solutions": ("of solutions", -1),
    "pass@1": ("pass@1", 1),
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
        found, low, high = map(self.text, (self.found, self.low, self.high))
        return found if low == high else f"{found} ({low} to {high})"

    def text(self, value):
        text = f"{value:.2f}"
        if text == f"{self.smallest:.2f}":
            return f"<{text}"
        return f">{text}" if text == f"{self.largest:.2f}" else text


def needed_flops(budgets, scores, goal):
    """The FLOPs at which a method reaches `goal`, between its budgets on a line through (log FLOPs,
    score). The last budget where the goal is above all scores, the first where it is below them.

    budgets: FLOPs, rising. scores: there, larger ones better.
    """
    rising = np.maximum.accumulate(scores)
    return np.exp(np.interp(goal, rising, np.log(budgets)))


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
    proxy_scores: of two seeds or more. Larger scores are better.
    """
    budgets = sorted(raw_scores)
    raw_means = [np.mean(raw_scores[budget]) for budget in budgets]
    found = needed_flops(budgets, raw_means, np.mean(proxy_scores))

    rng = np.random.default_rng(0)
    raw_variance = pooled_variance(raw_scores.values())
    drawn_raw = [drawn_means(rng, raw_scores[budget], *raw_variance) for budget in budgets]
    drawn_goals = drawn_means(rng, proxy_scores, *pooled_variance([proxy_scores]))
    drawn = []
    for *scores, goal in zip(*drawn_raw, drawn_goals):
        drawn.append(needed_flops(budgets, scores, goal))
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Multiplier(found / flops, low / flops, high / flops, budgets[0] / flops,
                      budgets[-1] / flops)


# -----------------------------------------------------------------------------
# what was measured


def scores_of(method, size, flops, key):
    """The results `key` of a method's seeds, with a sign that makes larger ones better."""
    flags = MULTIPLIED[heading(size, flops)][method]
    _, sign = MEASURES[key]
    return [sign * value for value in values_of(runs_of(flags, STUDIES["multiplier"]), key)]


def measured(proxy, size, flops, key):
    """A proxy's Multiplier; None if there are too few runs."""
    raw_scores = {}
    for other_size, budget in sum(SETTINGS.values(), MORE_RAW):
        scores = scores_of("raw bytes", other_size, budget, key)
        if other_size == size and scores:
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
    arrow: the interval goes on beyond raw bytes' largest budget."""
    for number, (symbols, settings) in enumerate(SETTINGS.items()):
        color = f"C{number}"
        multipliers = [measured(proxy, size, flops, key) for size, flops in settings]
        x = [SIZES.index(size) + 0.15 * (number - 1) for size, _ in settings]
        axes.plot(x, [each.found for each in multipliers], "o", color=color, label=str(symbols))
        for place, each in zip(x, multipliers):
            axes.vlines(place, each.low, each.high, color=color)
            if each.text(each.high).startswith(">"):
                axes.annotate("", (place, each.high + 0.6), (place, each.high),
                              arrowprops={"arrowstyle": "->", "color": color})
    axes.axhline(1, color="0.7")
    axes.set(xlim=(-0.5, 1.5), ylim=(0, 8))
    axes.set_xticks(range(len(SIZES)), SIZES)
    axes.spines[["top", "right"]].set_visible(False)


def plot():
    from matplotlib.figure import Figure  # optional; without pyplot, it needs no display
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
