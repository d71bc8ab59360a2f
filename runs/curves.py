"""
"What you will see" in README.md: one training, and its curves from log.jsonl. About three minutes on
two cores.

    python runs/curves.py              trains, keeps the log, draws it
    python runs/curves.py --show       only draws

The log is kept as runs/results/curves.jsonl, the figure as curves.png beside it.
"""
import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

try:
    import matplotlib
except ImportError:
    raise SystemExit("error: curves.py needs matplotlib; pip install matplotlib") from None
matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402  (the backend comes first)

ROOT = Path(__file__).resolve().parent.parent
LOG = ROOT / "runs" / "results" / "curves.jsonl"
FIGURE = ROOT / "runs" / "results" / "curves.png"


def train():
    """Train as README.md's first command does, with a validation every 50 steps. Keep the log."""
    out = ROOT / "out" / "curves"
    subprocess.run([sys.executable, "train.py", "--eval_every=50", "--report=none", f"--out={out}",
                    "--overwrite"], cwd=ROOT, check=True)
    shutil.copy(out / "log.jsonl", LOG)


def column(log, name):
    return [row[name] for row in log]


def draw_losses(axes, log):
    """Bits per byte of either view. The first validation, before any training, is left out."""
    trained = log[1:]
    symbols = column(trained, "symbols")
    axes.plot(symbols, column(trained, "val_raw"), "k-", label="raw bytes")
    axes.plot(symbols, column(trained, "val_comp"), "k--", label="the proxy's symbols")
    axes.set(ylabel="bits per byte, held-out text", yscale="log")
    axes.minorticks_off()
    axes.set_yticks([0.2, 0.3, 0.5, 1, 2], ["0.2", "0.3", "0.5", "1", "2"])
    axes.legend(frameon=False, title="read as")


def draw_mixing_rate(axes, log):
    """r over the training; grey where pairs are shown."""
    axes.plot(column(log, "symbols"), column(log, "r"), "k-")
    first_without = column(log, "pairs").index(False)
    pairs_end = log[first_without]["symbols"]
    axes.axvspan(0, pairs_end, color="0.85")
    axes.text(pairs_end / 2, 0.05, "pairs", ha="center")
    axes.set(xlabel="million symbols", ylabel="mixing rate r", ylim=(0, 1))


def draw():
    log = [json.loads(line) for line in LOG.read_text().splitlines()]
    for row in log:
        row["symbols"] /= 1e6
    figure, (top, bottom) = pyplot.subplots(2, 1, figsize=(7, 5), sharex=True,
                                            height_ratios=(2, 1), layout="constrained")
    draw_losses(top, log)
    draw_mixing_rate(bottom, log)
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(FIGURE, dpi=120)
    print(f"wrote {FIGURE.relative_to(ROOT)}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", action="store_true", help="only draw the log that was kept")
    if not parser.parse_args().show:
        train()
    draw()


if __name__ == "__main__":
    main()
