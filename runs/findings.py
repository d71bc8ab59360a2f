"""
The experiments of runs/README.md: the paper's tables in miniature.

    python runs/findings.py compute            prints the table of the study "compute"
    python runs/findings.py compute --train    makes the runs that it lacks first, which takes hours
    python runs/findings.py gap                prints and draws the proxies' lead over raw bytes

Every run is a line of runs/results/runs.jsonl: its flags, seed, results and CPU seconds. Studies
share runs, and an interrupted --train goes on where it was. All runs are made in float32 and on one
core each, whatever the machine's defaults.

A number in a table is the mean over seeds, with half the width of its 95 % interval (Student's t).
A star marks an interval that does not overlap the one in the first line of its group.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "runs" / "results" / "runs.jsonl"
GAP_FIGURE = ROOT / "runs" / "results" / "gap.png"
SEEDS = (1, 2, 3)

# Student's t at 97.5 %, by the number of seeds
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}

# What data/tinycode.py writes to data/<name>. tinycode itself has 20,000 functions and 1,000 facts.
# "fresh" has problems of another seed than those by which the recipe was chosen.
CORPORA = {
    "fresh": "--seed=1000 --problems=500 --functions=1 --facts=10",
    "facts-100": "--facts=100",
    "facts-2000": "--facts=2000",
    "few": "--facts=100 --functions=2000",
}

# -----------------------------------------------------------------------------
# the methods: each is a line of flags for train.py
#
# In braces stands another method's line of flags. The braces are replaced by the number of bytes
# that the run of that method, with the same seed, was shown raw.

TOKENIZER = "--proxy=tokenizer"
NEURAL = "--proxy=neural"
# The neural proxy when its byte LM still decided where to cut a text: runs of commit 1780c70, which
# this script can't make again
NEURAL_LM_CUTS = "--proxy=neural@1780c70"
RAW_BYTES = "--proxy=none"

THREE_METHODS = {
    "raw bytes": RAW_BYTES,
    "proxy: tokenizer": TOKENIZER,
    "proxy: neural": NEURAL,
    "neural, LM's cuts": NEURAL_LM_CUTS,
}
FIVE_METHODS = THREE_METHODS | {
    "proxy: gzip": "--proxy=gzip",
    "tokenizer model": f"{TOKENIZER} --mix=1.0",
}


def join(*flags):
    return " ".join(flag for flag in flags if flag)


def at_equal_compute(methods, flops, more=""):
    """{name: flags} of the methods, with the flags `more`, each trained for `flops` FLOPs."""
    return {name: join(flags, more, f"--flops={flops:.0e}") for name, flags in methods.items()}


def six_methods(flops, more=""):
    """The five methods at equal compute and, sixth, raw bytes without what was read compressed.

    The sixth reads as many bytes as the tokenizer proxy was shown raw, and nothing else.
    """
    methods = at_equal_compute(FIVE_METHODS, flops, more)
    reference = methods["proxy: tokenizer"]
    methods["raw, equal bytes"] = join(RAW_BYTES, more, f"--budget={{{reference}}}")
    return methods


def three_methods(flops, more=""):
    return at_equal_compute(THREE_METHODS, flops, more)


def variations(base, changes, flops=1e13):
    """{name: flags} of the method `base` with each of some changes {name: flags}."""
    methods = {name: join(base, change) for name, change in changes.items()}
    return at_equal_compute(methods, flops)


def sizes(methods, *settings):
    """A group for each (size, FLOPs), of the methods that `methods(flops, flags)` gives."""
    groups = {}
    for size, flops in settings:
        # micro is train.py's default
        size_flag = "" if size == "micro" else f"--size={size}"
        groups[f"{size}, {flops:.0e} FLOPs"] = methods(flops, size_flag)
    return groups


# -----------------------------------------------------------------------------
# the studies: each is a table


@dataclass(frozen=True)
class Study:
    columns: dict     # key of a result: heading of its column
    groups: dict      # heading of a group: its methods {name: flags of train.py}
    task: str = None  # flags of eval.py that measure what train.py's closing report lacks


TEXT = {"text_bytes": "text, MB", "bpb": "bits per byte"}
PASS = {"pass@1": "pass@1"}
REPORT = TEXT | PASS | {
    "pass@10": "pass@10",
    "facts_any": "facts",
    "facts_comp": "facts, comp",
}
TRANSLATION = PASS | {
    "facts_comp": "facts, comp",
    "comp to raw, exact": "comp to raw",
    "raw to comp, exact": "raw to comp",
}
ROBUSTNESS = {
    "greedy pass@1": "greedy pass@1",
    "robust name": "name",
    "robust format": "format",
    "robust syntax": "syntax",
    "robust docstring": "docstring",
    "bpb, 1% noise": "bpb at 1 %",
    "bpb, 10% noise": "bpb at 10 %",
}

MIXING_RATES = variations(TOKENIZER, {
    "0.9": "",
    "0.5": "--mix=0.5",
    "0.7": "--mix=0.7",
    "0.95": "--mix=0.95",
    "1, read as tokens": "--mix=1.0",
})
MIXING_RATES["0, raw bytes"] = f"{RAW_BYTES} --flops=1e+13"

RAW_PHASES = variations(TOKENIZER, {
    "in the last 60 %": "",
    "never": "--raw_phase=0",
    "in the last 10 %": "--raw_phase=0.1",
    "in the last 25 %": "--raw_phase=0.25",
    "in the last 50 %": "--raw_phase=0.5",
})
ADDITIONS = {
    "all of them": "",
    "not aligned": "--no-align",
    "no n-grams": "--ngram=0",
    "--paper": "--paper",
}
LEARNING_RATES = {
    "as in the tables": "",
    "lr 2e-3": "--lr=2e-3",
    "lr 8e-3": "--lr=8e-3",
}
PAIRS = {
    "in the warm-up": "",
    "always": "--pairs=always",
    "always, no raw phase": "--pairs=always --raw_phase=0",
    "none": "--mode=sentinel",
    "none, no sentinels": "--mode=vanilla",
}
ALWAYS = f"{TOKENIZER} --pairs=always --raw_phase=0"
FACTS_100 = f"{NEURAL_LM_CUTS} --size=nano --data=data/facts-100/corpus.jsonl"
FEW = f"{NEURAL_LM_CUTS} --size=nano --data=data/few/corpus.jsonl"
FACTS_TRIALS = variations(FACTS_100, {
    "as above": "",
    "not aligned": "--no-align",
    "pairs always": "--pairs=always",
}, flops=6e12)

STUDIES = {
    "compute": Study(REPORT, sizes(
        six_methods, ("nano", 6e12), ("micro", 1e13), ("mini", 2e13), ("midi", 4e13))),
    "budget": Study(REPORT, sizes(
        three_methods, ("nano", 3e12), ("micro", 5e12), ("micro", 2e13), ("mini", 4e13))),
    "mixing": Study(REPORT, {
        "mixing rate r": MIXING_RATES,
        "r falls to 0": RAW_PHASES,
        "sample mask": variations(TOKENIZER, {"on": "", "off": "--no-sample_mask"}),
        "additions to the paper": variations(TOKENIZER, ADDITIONS),
        "raw bytes": variations(RAW_BYTES, LEARNING_RATES | {"--paper: no n-grams": "--paper"}),
        "raw bytes, nano, 6e+12 FLOPs": variations(
            f"{RAW_BYTES} --size=nano", LEARNING_RATES, flops=6e12),
        "nano, 6e+12 FLOPs, all with lr 8e-3": three_methods(6e12, "--size=nano --lr=8e-3"),
    }),
    "pairs": Study(TRANSLATION, {
        "pairs": variations(TOKENIZER, PAIRS),
        "always, no raw phase": {
            "1e+13 FLOPs": f"{ALWAYS} --flops=1e+13",
            "4e+13 FLOPs": f"{ALWAYS} --flops=4e+13",
        },
    }, task="translate"),
    "robust": Study(ROBUSTNESS, {
        "micro, 1e+13 FLOPs": at_equal_compute(FIVE_METHODS, 1e13),
    }, task="robust"),
    "fresh": Study(
        PASS, sizes(three_methods, ("micro", 1e13), ("micro", 2e13)),
        task="pass --n=4 --k=1 --problems=data/fresh/problems.jsonl"),
    "facts": Study(REPORT, {
        "nano, 6e+12 FLOPs, 100 facts": three_methods(
            6e12, "--size=nano --data=data/facts-100/corpus.jsonl"),
        "nano, 6e+12 FLOPs, 1,000 facts": three_methods(6e12, "--size=nano"),
        "nano, 6e+12 FLOPs, 2,000 facts": three_methods(
            6e12, "--size=nano --data=data/facts-2000/corpus.jsonl"),
        "nano, 6e+12 FLOPs, 100 facts, neural": FACTS_TRIALS | {
            "2,000 functions": f"{FEW} --flops=6e+12",
        },
    }),
    "stdlib": Study(TEXT, {"stdlib, 1e+13 FLOPs": six_methods(1e13, "--data=stdlib")}),
}

# -----------------------------------------------------------------------------
# the runs there are


def results():
    """{(flags, task, seed): row} of all finished runs. task: None for train.py's own report."""
    if not RESULTS.exists():
        return {}
    found = {}
    for line in RESULTS.read_text().splitlines():
        row = json.loads(line)
        found[row["flags"], row["task"], row["seed"]] = row
    return found


def runs_of(flags, task):
    """The results of a method, a dict for each seed that has been run.

    Those of a task are joined to those of train.py's report.
    """
    found = results()
    runs = []
    for seed in SEEDS:
        trained = found.get((flags, None, seed))
        measured = found.get((flags, task, seed))
        if trained and measured:
            runs.append(trained | measured)
    return runs


def values_of(runs, key):
    """The results `key` of runs that have it. A tokenizer model has it under `<key>_comp`."""
    values = []
    for run in runs:
        if key in run:
            values.append(run[key])
        elif f"{key}_comp" in run:
            values.append(run[f"{key}_comp"])
    return values


def interval(values):
    """(mean, half the width of its 95 % interval). Of a single value nothing is known: infinite."""
    if len(values) == 1:
        return values[0], np.inf
    half = T95[len(values)] * np.std(values, ddof=1) / len(values) ** 0.5
    return np.mean(values), half


# -----------------------------------------------------------------------------
# a study's table


def cell(values, reference, key):
    """One cell, as text. reference: the values in the first line of the group."""
    if not values:
        return " " * 14
    if key == "text_bytes":
        return f"{np.mean(values) / 1e6:9.2f}"
    if len(values) == 1:
        return f"{values[0]:6.3f}        "
    mean, half = interval(values)
    reference_mean, reference_half = interval(reference)
    apart = abs(mean - reference_mean) > half + reference_half
    return f"{mean:6.3f} ±{half:.3f}{'*' if apart else ' '}"


def print_group(columns, heading, runs_by_method):
    print(heading)
    first_runs = next(iter(runs_by_method.values()))
    for name, runs in runs_by_method.items():
        line = f"  {name:21}{len(runs):4}"
        for key in columns:
            line += cell(values_of(runs, key), values_of(first_runs, key), key)
        print(line.rstrip())


def print_table(name):
    """Print a study's table: a line for each method that has been run.

    A group in which there is nothing to compare, as yet, is left out.
    """
    study = STUDIES[name]
    header = f"{'':21} seeds"
    for key, heading in study.columns.items():
        width = 9 if key == "text_bytes" else 14
        header += f"{heading:>{width}}"
    print(header)

    for heading, methods in study.groups.items():
        runs_by_method = {}
        for method, flags in methods.items():
            runs = runs_of(flags, study.task)
            if runs:
                runs_by_method[method] = runs
        if len(runs_by_method) > 1:
            print_group(study.columns, heading, runs_by_method)


# -----------------------------------------------------------------------------
# the gap: how far a proxy is ahead of raw bytes

SIZE_NAMES = ["nano", "micro", "mini", "midi"]

# FLOPs that give each size, in this order, about as many symbols
EQUAL_SYMBOLS = {
    "about 1 million": (3e12, 1e13, 2e13, 4e13),
    "about 2 million": (6e12, 2e13, 4e13),
}


def gaps(method):
    """{(size, FLOPs): (gap, half the width of its 95 % interval)} of every budget there is.

    gap: pass@1 of the method minus that of raw bytes. Its two errors add up as independent ones do.
    """
    found = {}
    groups = STUDIES["compute"].groups | STUDIES["budget"].groups
    for heading, methods in groups.items():
        size, flops = heading.removesuffix(" FLOPs").split(", ")
        base = values_of(runs_of(methods["raw bytes"], None), "pass@1")
        values = values_of(runs_of(methods[method], None), "pass@1")
        if len(base) > 1 and len(values) > 1:
            base_mean, base_half = interval(base)
            mean, half = interval(values)
            found[size, float(flops)] = (mean - base_mean, np.hypot(half, base_half))
    return found


def print_gaps():
    print(f"{'':22}" + "".join(f"{size:>14}" for size in SIZE_NAMES))
    for method in list(THREE_METHODS)[1:]:
        found = gaps(method)
        print(method)
        for label, budgets in EQUAL_SYMBOLS.items():
            line = f"  {label:21}"
            for setting in zip(SIZE_NAMES, budgets):
                if setting in found:
                    gap, half = found[setting]
                    line += f"{gap:6.3f} ±{half:.3f} "
                else:
                    line += " " * 14
            print(line.rstrip())


def draw_lines(axes, lines, shift):
    """Draw lines {label: [(x, gap, half)]} with error bars.

    shift(x, number) moves the line of this number a little, so that no bar hides another.
    """
    for number, (label, points) in enumerate(lines.items()):
        x, gap, half = np.array(points).T
        axes.errorbar(shift(x, number), gap, half, label=label, capsize=3,
                      color=str(0.2 * number),
                      linestyle=("--", "-", ":", "-.")[number],
                      marker="os^v"[number])
    axes.axhline(0, color="black", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def draw_against_compute(axes, found):
    """A line for each size; compute on a log axis."""
    lines = {}
    for (size, flops), (gap, half) in sorted(found.items()):
        lines.setdefault(size, []).append((flops / 1e12, gap, half))
    in_order = {size: lines[size] for size in SIZE_NAMES if size in lines}
    draw_lines(axes, in_order, lambda x, number: x * 1.03 ** number)

    ticks = sorted({flops / 1e12 for _, flops in found})
    axes.set(xscale="log", xlabel="compute of the training, 1e12 FLOPs")
    axes.minorticks_off()
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])


def draw_against_size(axes, found):
    """A line for each number of symbols."""
    lines = {}
    for label, budgets in EQUAL_SYMBOLS.items():
        for x, setting in enumerate(zip(SIZE_NAMES, budgets)):
            if setting in found:
                lines.setdefault(label, []).append((x, *found[setting]))
    draw_lines(axes, lines, lambda x, number: x + 0.08 * number)

    axes.set_xticks(range(len(SIZE_NAMES)), SIZE_NAMES)
    axes.set(xlabel="size", xlim=(-0.4, len(SIZE_NAMES) - 0.6))


def draw_gaps():
    """Draw GAP_FIGURE: a column for each proxy, above against compute, below against size."""
    import matplotlib  # optional: only the figures need it
    matplotlib.use("Agg")
    from matplotlib import pyplot

    # of the neural proxy there is one budget as yet; with the LM's cuts there are all
    methods = ("proxy: tokenizer", "neural, LM's cuts")
    figure, panels = pyplot.subplots(2, 2, figsize=(9, 6.6), sharey=True, layout="constrained")
    for (above, below), method in zip(panels.T, methods):
        found = gaps(method)
        above.set_title(method)
        draw_against_compute(above, found)
        draw_against_size(below, found)

    for axes, title in zip(panels[:, 0], ("size", "symbols of the training")):
        axes.set_ylabel("pass@1 minus that of raw bytes\nat equal FLOPs, 95 % intervals")
        axes.legend(frameon=False, title=title, loc="upper left")
    panels[0, 0].set_ylim(top=0.75)  # room for the legends; the panels share it
    figure.savefig(GAP_FIGURE, dpi=120)
    print(f"wrote {GAP_FIGURE.relative_to(ROOT)}")


# -----------------------------------------------------------------------------
# making the runs that a study lacks


def run_script(*command):
    """Run a script of this project on one core. Returns (what it prints, its CPU seconds)."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=errors, text=True)
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if status:
            errors.seek(0)
            raise SystemExit(f"error: {' '.join(command)} failed: {errors.read()[-300:]}")
    return printed, usage.ru_utime + usage.ru_stime


def reference_of(flags):
    """The flags in braces, those of another method; None where there are none."""
    _, brace, rest = flags.partition("{")
    return rest.partition("}")[0] if brace else None


def train_flags(flags, seed):
    """What train.py is given: the flags, with the number that the braces stand for."""
    reference = reference_of(flags)
    if reference is None:
        return flags.split()
    shown_raw = results()[reference, None, seed]["raw_bytes"]
    return flags.replace(f"{{{reference}}}", str(shown_raw)).split()


def train(flags, seed, folder):
    """(the closing report, CPU seconds) of a training."""
    _, seconds = run_script("train.py", *train_flags(flags, seed), f"--seed={seed}",
                            f"--out={folder}", "--overwrite", "--dtype=float32")
    return json.loads((folder / "report.json").read_text()), seconds


def measure(flags, task, folder):
    """(results, CPU seconds) of a task of eval.py. A tokenizer model reads and writes symbols."""
    view = "comp" if "--mix=1.0" in flags else "raw"
    printed, seconds = run_script("eval.py", str(folder), f"--view={view}", "--json",
                                  *f"--task={task}".split())
    return json.loads(printed.splitlines()[-1]), seconds


def add_run(flags, task, seed):
    """Make one run, then add its row to the results."""
    name = f"{flags} --seed={seed}".replace("--", "")
    folder = ROOT / "out" / "findings" / name
    seconds = 0.0
    if task is None or not (folder / "ckpt.pt").exists():
        found, seconds = train(flags, seed, folder)
    if task is not None:
        found, more = measure(flags, task, folder)
        seconds += more

    row = {"flags": flags, "task": task, "seed": seed, "cpu_seconds": round(seconds)}
    for key, value in found.items():
        if not key.endswith("_95"):  # intervals over problems; the tables' are over seeds
            row[key] = value
    with open(RESULTS, "a") as f:
        f.write(json.dumps(row) + "\n")
    print(f"{flags} --seed={seed}, {task or 'training'}: {seconds:.0f} s", flush=True)


def lacking(study):
    """The runs (flags, task, seed) that a study lacks, as three lists.

    First trainings, then those that need a number of the first, then what needs trained models.
    """
    trainings, dependent, tasks = [], [], []
    found = results()
    for methods in study.groups.values():
        for seed in SEEDS:
            for flags in methods.values():
                if NEURAL_LM_CUTS in flags:
                    continue
                stage = dependent if reference_of(flags) else trainings
                stage.append((flags, None, seed))
                if study.task:
                    tasks.append((flags, study.task, seed))
    stages = []
    for stage in (trainings, dependent, tasks):
        once = dict.fromkeys(stage)  # groups share methods
        stages.append([key for key in once if key not in found])
    return stages


def write_corpora(runs):
    """Write the corpora that the runs name and that are not there yet."""
    for name, flags in CORPORA.items():
        is_needed = any(f"data/{name}/" in str(run) for run in runs)
        if is_needed and not (ROOT / "data" / name / "corpus.jsonl").exists():
            run_script("data/tinycode.py", *flags.split(), f"--out=data/{name}")


def complete(study):
    """Make all runs that a study lacks, as many at once as there are cores."""
    RESULTS.parent.mkdir(exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for stage in lacking(study):
            write_corpora(stage)
            list(pool.map(lambda run: add_run(*run), stage))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=[*STUDIES, "gap"])
    parser.add_argument("--train", action="store_true", help="make the runs that it lacks first")
    options = parser.parse_args()
    if options.study == "gap":
        print_gaps()
        draw_gaps()
        return
    if options.train:
        complete(STUDIES[options.study])
    print_table(options.study)


if __name__ == "__main__":
    main()
