"""
The README's experiments in training: the paper's tables in miniature. Runs what a study lacks, one run on each core.

    python runs/findings.py compute              hours; interrupted, it goes on where it was
    python runs/findings.py compute --show       prints its table
    python runs/findings.py gap                  draws runs/results/gap.png from the studies compute and budget

Every run is a line of runs/results/runs.jsonl: its flags, seed, results and CPU seconds; studies share runs. All are made in
float32, whatever the machine's default. A number in a table is the mean over seeds and half the width of its 95 %
interval (Student's t). A star marks an interval that is apart from that of the first line in its group.
"""
import argparse
import json
import os
import subprocess
import sys
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "runs.jsonl"
SEEDS = (1, 2, 3)
# What data/tinycode.py writes to data/<name>; tinycode itself has 20,000 functions and 1,000 facts. "fresh" has problems of
# another seed than those by which the recipe was chosen.
CORPORA = {
    "fresh": "--seed=1000 --problems=500 --functions=1 --facts=10",
    "facts-100": "--facts=100",
    "facts-2000": "--facts=2000",
    "few": "--facts=100 --functions=2000",
}
T95 = {1: np.nan, 2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t at 97.5 %, by the number of seeds

# Arms are flags of train.py. In braces: the number of bytes that the run with these flags, of the same seed, was shown raw.
TOKENIZER = "--proxy=tokenizer"
FACTS_100 = "--proxy=neural --size=nano --data=data/facts-100/corpus.jsonl"
COMPARED = {"raw bytes": "--proxy=none", "proxy: tokenizer": TOKENIZER, "proxy: neural": "--proxy=neural"}
ALL = COMPARED | {"proxy: gzip": "--proxy=gzip", "tokenizer model": f"{TOKENIZER} --mix=1.0"}


def arms(flops, more="", some=COMPARED):
    return {arm: " ".join(f"{flags} {more} --flops={flops:.0e}".split()) for arm, flags in some.items()}


def all_arms(flops, more=""):
    """At equal FLOPs, and raw bytes that read only what the tokenizer's arm read raw."""
    same = arms(flops, more, ALL)
    return same | {"raw, equal bytes": " ".join(f"--proxy=none {more} --budget={{{same['proxy: tokenizer']}}}".split())}


def at(size, flops, make):
    """{the group's name: its arms}; make is `arms` or `all_arms`."""
    return {f"{size}, {flops:.0e} FLOPs": make(flops, f"--size={size}" * (size != "micro"))}  # micro is train.py's default


def varied(changes, base=TOKENIZER, flops=1e13):
    return {arm: " ".join(f"{base} {flags} --flops={flops:.0e}".split()) for arm, flags in changes.items()}


TEXT = {"text_bytes": "text, MB", "bpb": "bits per byte"}
REPORT = TEXT | {"pass@1": "pass@1", "pass@10": "pass@10", "facts_raw": "facts", "facts_comp": "facts, comp"}
ROBUST = {"greedy pass@1": "greedy pass@1"} | {f"robust {kind}": kind for kind in ("name", "format", "syntax", "docstring")} | {
    f"bpb, {noise}% noise": f"bpb at {noise} %" for noise in (1, 10)}
PASS = {"pass@1": "pass@1"}
ORACLE = {"pass@1": "pass@1", "facts_comp": "facts, comp", "comp to raw, exact": "comp to raw", "raw to comp, exact": "raw to comp"}
# study: (what its table shows, the task of eval.py that gives it besides train.py's own report, {group: {arm: flags}})
STUDIES = {
    "compute": (REPORT, None, at("nano", 6e12, all_arms) | at("micro", 1e13, all_arms) | at("mini", 2e13, all_arms)
                | at("midi", 4e13, all_arms)),
    "budget": (REPORT, None, at("nano", 3e12, arms) | at("micro", 5e12, arms) | at("micro", 2e13, arms)
               | at("mini", 4e13, arms)),
    "mixing": (REPORT, None, {
        "mixing rate r": varied({"0.9": "", "0.5": "--mix=0.5", "0.7": "--mix=0.7", "0.95": "--mix=0.95",
                                 "1, read as tokens": "--mix=1.0"}) | varied({"0, raw bytes": ""}, "--proxy=none"),
        "r falls to 0": varied({"in the last 60 %": "", "never": "--raw_phase=0", "in the last 10 %": "--raw_phase=0.1",
                                "in the last 25 %": "--raw_phase=0.25", "in the last 50 %": "--raw_phase=0.5"}),
        "sample mask": varied({"on": "", "off": "--no-sample_mask"}),
        "what is ours": varied({"all of it": "", "not aligned": "--no-align", "no n-grams": "--ngram=0", "--paper": "--paper"}),
        "raw bytes": varied({"as in the tables": "", "lr 2e-3": "--lr=2e-3", "lr 8e-3": "--lr=8e-3",
                             "--paper: no n-grams": "--paper"}, "--proxy=none"),
        "raw bytes, nano, 6e+12 FLOPs": varied({"as in the tables": "", "lr 2e-3": "--lr=2e-3", "lr 8e-3": "--lr=8e-3"},
                                               "--proxy=none --size=nano", 6e12),
        "nano, 6e+12 FLOPs, all with lr 8e-3": arms(6e12, "--size=nano --lr=8e-3")}),
    "pairs": (ORACLE, "translate", {"pairs": varied({
        "in the warm-up": "", "always": "--pairs=always", "always, no raw phase": "--pairs=always --raw_phase=0",
        "none": "--mode=sentinel", "none, no sentinels": "--mode=vanilla"}),
        "always, no raw phase": varied({"1e+13 FLOPs": "--pairs=always --raw_phase=0"})
        | varied({"4e+13 FLOPs": "--pairs=always --raw_phase=0"}, flops=4e13)}),
    "robust": (ROBUST, "robust", {"micro, 1e+13 FLOPs": arms(1e13, some=ALL)}),
    "fresh": (PASS, "pass --n=4 --k=1 --problems=data/fresh/problems.jsonl",
              at("micro", 1e13, arms) | at("micro", 2e13, arms)),
    "facts": (REPORT, None, {f"nano, 6e+12 FLOPs, {n:,} facts": arms(
        6e12, "--size=nano" + f" --data=data/facts-{n}/corpus.jsonl" * (n != 1000)) for n in (100, 1000, 2000)} | {
        "nano, 6e+12 FLOPs, 100 facts, neural": varied({
            "as above": "", "not aligned": "--no-align", "pairs always": "--pairs=always"}, FACTS_100, 6e12) | varied({
            "2,000 functions": ""}, FACTS_100.replace("facts-100", "few"), 6e12)}),
    "stdlib": (TEXT, None, {"stdlib, 1e+13 FLOPs": all_arms(1e13, "--data=stdlib")}),
}


def results():
    """{(flags, task, seed): row} of the runs there are."""
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    return {(row["flags"], row["task"], row["seed"]): row for row in rows}


def run(*command):
    """What a script prints that runs on one core, and its CPU seconds. Raises SystemExit where it fails."""
    process = subprocess.Popen([sys.executable, *command], cwd=HERE.parent, env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with ThreadPoolExecutor(1) as pool:  # both pipes have to be read
        said = pool.submit(process.stderr.read)
        printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"error: {' '.join(command)} failed: {said.result()[-300:]}")
    return printed, usage.ru_utime + usage.ru_stime


def add_run(flags, task, seed, over):
    """Make one run and add its row to the results. over: {run: an event that is set when it is over}."""
    folder, given = HERE.parent / "out" / "findings" / f"{flags} --seed={seed}".replace("--", ""), flags
    try:
        for needed in ([flags.split("{")[1].split("}")[0]] if "{" in flags else []) + [flags] * (task is not None):
            if (needed, None, seed) in over:
                over[needed, None, seed].wait()
            if needed != flags:
                given = flags.replace(f"{{{needed}}}", str(results()[needed, None, seed]["raw_bytes"]))
        seconds = 0.0
        if task is None or not (folder / "ckpt.pt").exists():
            _, seconds = run("train.py", *given.split(), f"--seed={seed}", f"--out={folder}", "--dtype=float32")
            row = json.loads((folder / "report.json").read_text())
        if task:
            view = "comp" if "--mix=1.0" in flags else "raw"
            printed, more = run("eval.py", str(folder), *f"--task={task} --view={view} --json".split())
            row, seconds = json.loads(printed.splitlines()[-1]), seconds + more
        row = {"flags": flags, "task": task, "seed": seed, "cpu_seconds": round(seconds)} | {
            key: value for key, value in row.items() if not key.endswith("_95")}
        with open(RESULTS, "a") as f:
            f.write(json.dumps(row) + "\n")
        print(f"{flags} --seed={seed}{f', {task}' if task else ''}: {seconds:.0f} s", flush=True)
    finally:
        over[flags, task, seed].set()


def complete(study):
    """Make all runs of a study that there are not yet, as many at once as there are cores."""
    _, task, groups = STUDIES[study]
    wanted = [(flags, kind, seed) for arms in groups.values() for seed in SEEDS for kind in dict.fromkeys((None, task))
              for flags in arms.values()]
    over = {key: threading.Event() for key in dict.fromkeys(wanted) if key not in results()}
    RESULTS.parent.mkdir(exist_ok=True)
    for name, flags in CORPORA.items():
        if f"data/{name}/" in str(STUDIES[study]) and not (HERE.parent / "data" / name / "corpus.jsonl").exists():
            run("data/tinycode.py", *flags.split(), f"--out=data/{name}")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda key: add_run(*key, over), over))


def interval(values):
    """(mean, half the width of its 95 % interval, nan for a single value)"""
    return np.mean(values), T95[len(values)] * np.std(values, ddof=min(1, len(values) - 1)) / len(values) ** 0.5


def values_of(runs, key):
    """The results `key` of runs, through the proxy where they were measured so; [] where they have none."""
    return [run.get(key, run.get(f"{key}_comp")) for run in runs if key in run or f"{key}_comp" in run]


def runs_of(flags, task):
    """The results of the arm, one for each seed there is; of a task, with those of the closing report."""
    rows = results()
    return [rows[flags, None, seed] | rows[flags, task, seed] for seed in SEEDS
            if (flags, task, seed) in rows and (flags, None, seed) in rows]


def print_table(study):
    """A line for each arm that has been run, in each group that compares some."""
    columns, task, groups = STUDIES[study]
    print(f"{'':21} seeds" + "".join(f"{name:>{9 if key == 'text_bytes' else 14}}" for key, name in columns.items()))
    for name, arms in groups.items():
        arms = {arm: runs_of(flags, task) for arm, flags in arms.items()}
        arms = {arm: runs for arm, runs in arms.items() if runs}
        if len(arms) < 2:
            continue
        first = next(iter(arms.values()))
        print(name)
        for arm, runs in arms.items():
            line = f"  {arm:21}{len(runs):4}"
            for key in columns:
                values, others = values_of(runs, key), values_of(first, key)
                if not values:
                    line += f"{'':14}"
                elif key == "text_bytes":
                    line += f"{np.mean(values) / 1e6:9.2f}"
                elif len(values) == 1:
                    line += f"{values[0]:6.3f}        "
                else:
                    (mean, half), (other, other_half) = interval(values), interval(others)
                    line += f"{mean:6.3f} ±{half:.3f}" + ("*" if abs(mean - other) > half + other_half else " ")
            print(line.rstrip())


def gaps(arm):
    """{size: {FLOPs: (pass@1 of the arm less that of raw bytes, half the width of its 95 % interval)}}"""
    found = defaultdict(dict)
    for name, flags in (STUDIES["compute"][2] | STUDIES["budget"][2]).items():
        size, flops = name.removesuffix(" FLOPs").split(", ")
        base, runs = (values_of(runs_of(flags[some], None), "pass@1") for some in ("raw bytes", arm))
        if len(base) > 1 and len(runs) > 1:
            (mean, half), (other, other_half) = interval(runs), interval(base)
            found[size][float(flops)] = mean - other, np.hypot(half, other_half)
    return found


def draw_gap():
    """runs/results/gap.png, printed too: pass@1 less that of raw bytes, against compute for each size, and against size for
    budgets that give every size about as many symbols."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    sizes = ["nano", "micro", "mini", "midi"]
    same_symbols = {"about 1 million": (3e12, 1e13, 2e13, 4e13), "about 2 million": (6e12, 2e13, 4e13)}  # FLOPs of each size
    figure, panels = plt.subplots(2, 2, figsize=(9, 6.6), sharey=True, layout="constrained")
    for (above, below), arm in zip(panels.T, list(COMPARED)[1:]):
        found = gaps(arm)
        for size, points in found.items():
            for flops, (gap, error) in sorted(points.items()):
                print(f"{arm:17} {size:6} {flops:.0e} FLOPs {gap:6.3f} ±{error:.3f}")
        against_compute = {size: [(flops / 1e12, *points[flops]) for flops in sorted(points)] for size, points in found.items()}
        against_size = {label: [(x, *found[size][flops]) for x, (size, flops) in enumerate(zip(sizes, budgets))
                                if flops in found[size]] for label, budgets in same_symbols.items()}
        for axes, lines in ((above, against_compute), (below, against_size)):
            for number, (label, points) in enumerate(lines.items()):
                x, gap, error = zip(*points)
                x = np.array(x) * 1.03 ** number if axes is above else np.array(x) + 0.08 * number  # side by side
                axes.errorbar(x, gap, error, label=label, capsize=3, color=str(0.2 * number),
                              linestyle=("--", "-", ":", "-.")[number], marker="os^v"[number])
            axes.axhline(0, color="black", linewidth=0.8)
            axes.spines[["top", "right"]].set_visible(False)
        ticks = sorted({flops / 1e12 for points in found.values() for flops in points})
        above.set(xscale="log", xlabel="compute of the training, 1e12 FLOPs", title=arm)
        above.minorticks_off()
        above.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        below.set_xticks(range(len(sizes)), sizes)
        below.set(xlabel="size", xlim=(-0.4, len(sizes) - 0.6))
    for axes, title in zip(panels[:, 0], ("size", "symbols of the training")):
        axes.set_ylabel("pass@1 less that of raw bytes\nat equal FLOPs, 95 % intervals")
        axes.legend(frameon=False, title=title, loc="upper left")
    panels[0, 0].set_ylim(top=0.75)  # room for the legends; the panels share it
    figure.savefig(HERE / "results" / "gap.png", dpi=120)
    print("wrote runs/results/gap.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=[*STUDIES, "gap"])
    parser.add_argument("--show", action="store_true", help="print its table")
    options = parser.parse_args()
    if options.study == "gap":
        return draw_gap()
    if not options.show:
        complete(options.study)
    print_table(options.study)


if __name__ == "__main__":
    main()
