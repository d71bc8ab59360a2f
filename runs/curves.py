"""
README, "What you will see": one training, and its curves from log.jsonl. About 6 minutes on two cores.

    python runs/curves.py                        trains, keeps the log as runs/results/curves.jsonl, draws curves.png beside it
    python runs/curves.py --show                 only draws
"""
import json
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
matplotlib.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).resolve().parent
LOG = HERE / "results" / "curves.jsonl"


def draw():
    log = [json.loads(line) for line in LOG.read_text().splitlines()]
    symbols = [row["symbols"] / 1e6 for row in log]
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(7, 5), sharex=True, height_ratios=(2, 1), layout="constrained")
    for key, style, label in (("val_raw", "k-", "raw bytes"), ("val_comp", "k--", "the proxy's symbols")):
        top.plot(symbols[1:], [row[key] for row in log[1:]], style, label=label)
    top.set(ylabel="bits per byte, held-out text", yscale="log", yticks=(0.2, 0.3, 0.5, 1, 2), yticklabels="0.2 0.3 0.5 1 2".split())
    top.minorticks_off()
    top.legend(frameon=False, title="read as")
    bottom.plot(symbols, [row["r"] for row in log], "k-")
    paired = next(x for x, row in zip(symbols, log) if not row["pairs"])
    bottom.axvspan(0, paired, color="0.85")
    bottom.text(paired / 2, 0.05, "pairs", ha="center")
    bottom.set(xlabel="million symbols", ylabel="r, share of\ncompressed views", ylim=(0, 1))
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE / "results" / "curves.png", dpi=120)
    print("wrote runs/results/curves.png")


if __name__ == "__main__":
    if "--show" not in sys.argv[1:]:
        subprocess.run([sys.executable, "train.py", "--eval_every=20", "--report=none", "--out=out/curves"], cwd=HERE.parent,
                       check=True)
        shutil.copy(HERE.parent / "out" / "curves" / "log.jsonl", LOG)
    draw()
