"""
The README's experiments in training: the paper's tables in miniature. Trains what a study lacks, one run on each core.

    python runs/findings.py compute              hours; interrupted, it goes on where it was
    python runs/findings.py compute --show       its table and its figure, from runs/results/compute.jsonl

A line of the .jsonl is a run: its flags, seed, results and CPU seconds. A number in a table is the mean over seeds and half the
width of its 95 % interval (Student's t). A star marks an interval that is apart from that of the first arm in its group.
"""
import argparse
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
SEEDS = (1, 2, 3)
T95 = {1: np.nan, 2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t at 97.5 %, by the number of seeds

ARMS = {"raw bytes": "--proxy=none", "proxy: tokenizer": "--proxy=tokenizer", "proxy: neural": "--proxy=neural",
        "proxy: gzip": "--proxy=gzip", "tokenizer model": "--proxy=tokenizer --mix=1",
        "raw, equal bytes": "--proxy=none --budget={proxy: tokenizer}"}  # in braces: as many bytes as that arm saw raw
FLOPS = {"nano": "3e12", "micro": "1e13", "mini": "2e13", "midi": "4e13"}


def arms(group, more, flops, names=ARMS):
    return [(group, name, f"{ARMS[name]} {more}" + (f" --flops={flops}" if "{" not in ARMS[name] else "")) for name in names]


# Each run of a study, but for its seed: (group, arm, flags of train.py).
STUDIES = {
    "compute": [run for size, flops in FLOPS.items() for run in arms(size, f"--size={size}", flops)],
}


def rows_of(study):
    """{(group, arm, seed): row} of the runs there are."""
    path = HERE / "results" / f"{study}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {(row["group"], row["arm"], row["seed"]): row for row in rows}


def train(study, group, arm, flags, seed, finished):
    """One run on one core; its row is added to the study's file. `finished`: an event for each run, set when it is over."""
    if "{" in flags:
        other = flags[flags.index("{") + 1:flags.index("}")]
        finished[group, other, seed].wait()
        flags = flags.replace(f"{{{other}}}", str(rows_of(study)[group, other, seed]["raw_bytes"]))
    out = HERE.parent / "out" / study / f"{group}, {arm}, seed {seed}"
    command = [sys.executable, "train.py", *flags.split(), f"--seed={seed}", f"--out={out}"]
    process = subprocess.Popen(command, cwd=HERE.parent, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True)
    error = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"error: {' '.join(command)}\n{error[-500:]}")
    report = {k: v for k, v in json.loads((out / "report.json").read_text()).items() if not k.endswith("_95")}
    row = {"group": group, "arm": arm, "seed": seed, "flags": flags, **report,
           "cpu_seconds": round(usage.ru_utime + usage.ru_stime)}
    with open(HERE / "results" / f"{study}.jsonl", "a") as f:
        f.write(json.dumps(row) + "\n")
    print(f"{group}, {arm}, seed {seed}: {row['cpu_seconds']} s", flush=True)


COLUMNS = {"bpb": "bits per byte", "pass@1": "pass@1", "pass@10": "pass@10", "facts_raw": "facts", "facts_comp": "facts, comp"}


def interval(values):
    """(mean, half the width of its 95 % interval)"""
    return np.mean(values), T95[len(values)] * np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan


def values_of(runs, key):
    """The results `key` of runs, through the proxy where these were measured so."""
    return [run.get(key, run.get(f"{key}_comp")) for run in runs]


def groups_of(study):
    """{group: {arm: its runs, by seed}}, as far as there are any."""
    done, groups = rows_of(study), {}
    for group, arm, _ in STUDIES[study]:
        runs = [done[group, arm, seed] for seed in SEEDS if (group, arm, seed) in done]
        if runs:
            groups.setdefault(group, {})[arm] = runs
    return groups


def table(study):
    """The study's table, text: a line for each arm."""
    lines = [f"{'':26}{'text, MB':>9}" + "".join(f"{name:>15}" for name in COLUMNS.values())]
    for group, arms in groups_of(study).items():
        first = next(iter(arms.values()))
        seeds = sorted({len(runs) for runs in arms.values()})
        lines.append(f"{group}: {first[0]['flops']:.1e} FLOPs, {'-'.join(map(str, seeds))} seeds")
        for arm, runs in arms.items():
            line = f"  {arm:24}{np.mean(values_of(runs, 'text_bytes')) / 1e6:9.2f}"
            for key in COLUMNS:
                (mean, half), (other, other_half) = (interval(values_of(some, key)) for some in (runs, first))
                star = "*" if abs(mean - other) > half + other_half else " "
                line += f"{mean:7.3f} ±{half:.3f}{star}" if half == half else f"{mean:7.3f}        "
            lines.append(line.rstrip())
    return "\n".join(lines)
