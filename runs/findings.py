"""
The experiments of runs/README.md: the paper's tables in miniature.

    python runs/findings.py main               prints the table of the study "main"
    python runs/findings.py main --train       makes the runs that it lacks first, which takes hours

Every run is a line of runs/results/runs.jsonl: its flags, seed, commit and results. Studies share
runs, and an interrupted --train goes on where it was. All runs are made in float32 and on one core
each, whatever the machine's defaults.

A number in a table is the mean over seeds, with half the width of its 95 % interval (Student's t).
A star marks an interval that does not overlap the one in the first line of its group.
"""
import argparse
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "runs" / "results" / "runs.jsonl"
FIVE_SEEDS = (1, 2, 3, 4, 5)
THREE_SEEDS = (1, 2, 3)

# Student's t at 97.5 %, by the number of seeds
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}

# -----------------------------------------------------------------------------
# the methods: each is a line of flags for train.py
#
# In braces stands another method's line of flags. The braces are replaced by the number of bytes
# that the run of that method, with the same seed, was shown raw.

TOKENIZER = "--proxy=tokenizer"
NEURAL = "--proxy=neural"
GZIP = "--proxy=gzip"
BLIND = "--proxy=runs/controls.py:Blind"
SHUFFLED = "--proxy=runs/controls.py:Shuffled"
PRESET_GZIP = "--proxy=runs/controls.py:PresetGzip"
RAW_BYTES = "--proxy=none"

THREE_METHODS = {
    "raw bytes": RAW_BYTES,
    "proxy: tokenizer": TOKENIZER,
    "proxy: neural": NEURAL,
}
FOUR_METHODS = THREE_METHODS | {"proxy: gzip": GZIP}
TOKENIZER_MODEL = {"tokenizer model": f"{TOKENIZER} --mix=1.0"}
NEURAL_MODEL = {"neural model": f"{NEURAL} --mix=1.0"}

# between the tokenizer's proxy and gzip's one thing changes at a time
GZIP_CONTROLS = {
    "raw bytes": RAW_BYTES,
    "proxy: tokenizer": TOKENIZER,
    "tokenizer, blind": BLIND,
    "tokenizer, shuffled": SHUFFLED,
    "gzip with dictionary": PRESET_GZIP,
    "gzip": GZIP,
}


def join(*flags):
    return " ".join(flag for flag in flags if flag)


def at_equal_compute(methods, flops, more=""):
    """{name: flags} of the methods, with the flags `more`, each trained for `flops` FLOPs."""
    return {name: join(flags, more, f"--flops={flops:.0e}") for name, flags in methods.items()}


def at_nano(methods, more=""):
    """The methods at nano and 6e12 FLOPs: two minutes a run."""
    return at_equal_compute(methods, 6e12, join("--size=nano", more))


def variations(changes, base=TOKENIZER):
    """{name: flags} of the method `base` with each of some changes {name: flags}."""
    return at_nano({name: join(base, change) for name, change in changes.items()})


def heading(size, flops):
    return f"{size}, {flops:.0e} FLOPs"


def sizes(methods, *settings):
    """{heading: methods} with a group for each (size, FLOPs)."""
    groups = {}
    for size, flops in settings:
        groups[heading(size, flops)] = at_equal_compute(methods, flops, f"--size={size}")
    return groups


def with_equal_bytes(groups):
    """The groups, each with one more method: raw bytes without what was read compressed. It reads
    as many bytes as the tokenizer proxy was shown raw, and nothing else."""
    for methods in groups.values():
        raw, _, _ = methods["raw bytes"].rpartition(" --flops=")
        reference = methods["proxy: tokenizer"]
        methods["raw, equal bytes"] = f"{raw} --budget={{{reference}}}"
    return groups


# -----------------------------------------------------------------------------
# the studies: each is a table


@dataclass(frozen=True)
class Study:
    columns: dict     # key of a result: heading of its column
    groups: dict      # heading of a group: its methods {name: flags of train.py}
    task: str = None  # tasks of eval.py, with commas, that train.py's closing report lacks
    seeds: tuple = THREE_SEEDS


TEXT = {"text_bytes": "text, MB", "bpb": "bits per byte"}
PASS = {"pass@1": "pass@1"}
REPORT = TEXT | {"bpb_solutions": "of solutions"} | PASS | {"pass@10": "pass@10"}
PARTS = {
    "pass@1, 3 operations": "3 operations",
    "pass@1, 4 operations": "4 operations",
    "pass@1, 5 operations": "5 operations",
    "facts_any": "facts",
    "facts_comp": "facts, comp",
}
TRANSLATION = PASS | {
    "comp to raw, exact": "comp to raw",
    "raw to comp, exact": "raw to comp",
}
ROBUSTNESS = {
    "greedy pass@1": "greedy pass@1",
    "robust name": "name",
    "robust format": "format",
    "robust docstring": "docstring",
    "bpb, 10% noise": "bpb at 10 %",
}

MIXING_RATES = {
    "0.9": "",
    "0.5": "--mix=0.5",
    "0.7": "--mix=0.7",
    "0.95": "--mix=0.95",
    "1, read as tokens": "--mix=1.0",
}
RAW_PHASES = {
    "in the last 60 %": "",
    "never": "--raw_phase=0",
    "in the last 25 %": "--raw_phase=0.25",
}
ADDITIONS = {
    "all of them": "",
    "not aligned": "--no-align",
    "no n-grams": "--ngram=0",
    "--paper": "--paper",
}
PAIRS = {
    "in the warm-up": "",
    "always": "--pairs=always",
    "always, no raw phase": "--pairs=always --raw_phase=0",
    "none": "--mode=sentinel",
    "none, no sentinels": "--mode=vanilla",
}

# raw bytes, the proxies, and the models of symbols
ALL_METHODS = FOUR_METHODS | TOKENIZER_MODEL | NEURAL_MODEL
MAIN = with_equal_bytes(sizes(ALL_METHODS, ("nano", 6e12), ("nano", 2e13), ("micro", 6e13)))
# How much compute would raw bytes need to be as good as a proxy? The gain at two sizes can be
# compared if both read as many symbols for each of their parameters.
SETTINGS = {  # symbols that raw bytes read for each parameter in the blocks: (size, FLOPs)
    3.5: (("nano", 3e12), ("micro", 3e13)),
    7: (("nano", 6e12), ("micro", 6e13)),
    24: (("nano", 2e13),),
}
MORE_RAW = (("nano", 1e13), ("nano", 4e13), ("micro", 1e14), ("micro", 2e14))
MULTIPLIED = sizes({"raw bytes": RAW_BYTES}, *MORE_RAW)
for settings in SETTINGS.values():
    MULTIPLIED |= sizes(THREE_METHODS, *settings)

STUDIES = {
    "main": Study(REPORT, MAIN, seeds=FIVE_SEEDS),
    "parts": Study(PARTS, with_equal_bytes(sizes(ALL_METHODS, *SETTINGS[7])), seeds=FIVE_SEEDS),
    "multiplier": Study(REPORT, MULTIPLIED, seeds=FIVE_SEEDS),
    "gzip": Study(REPORT, {"nano, 6e+12 FLOPs": at_nano(GZIP_CONTROLS)}),
    "mixing": Study(REPORT, {
        "mixing rate r": variations(MIXING_RATES),
        "r falls to 0": variations(RAW_PHASES),
        "sample mask": variations({"on": "", "off": "--no-sample_mask"}),
        "additions to the paper": variations(ADDITIONS),
        "raw bytes": variations({"as above": "", "--paper: no n-grams": "--paper"}, RAW_BYTES),
    }),
    "pairs": Study(TRANSLATION, {"pairs": variations(PAIRS)}, task="translate"),
    "robust": Study(ROBUSTNESS, {
        "nano, 6e+12 FLOPs": at_nano(FOUR_METHODS | TOKENIZER_MODEL),
    }, task="robust,noise"),
    "text": Study(TEXT, {
        corpus: at_nano(FOUR_METHODS, f"--data={corpus}") for corpus in ("stdlib", "shakespeare")
    }),
}

# -----------------------------------------------------------------------------
# the runs there are


def results(path):
    """{(flags, task, seed): row} of all finished runs in a file. task: None for train.py's own
    report."""
    if not path.exists():
        return {}
    found = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        found[row["flags"], row["task"], row["seed"]] = row
    return found


def runs_of(flags, study):
    """The results of a method in a study, a dict for each of its seeds that has been run.

    Those of a task are joined to those of train.py's report.
    """
    found = results(RESULTS)
    runs = []
    for seed in study.seeds:
        trained = found.get((flags, None, seed))
        measured = found.get((flags, study.task, seed))
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

    A group of which nothing has been run is left out.
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
            runs = runs_of(flags, study)
            if runs:
                runs_by_method[method] = runs
        if runs_by_method:
            print_group(study.columns, heading, runs_by_method)


# -----------------------------------------------------------------------------
# making the runs that a study lacks


def run_script(*command):
    """Run a script of this project on one core. Returns what it prints."""
    script = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True)
    if script.returncode != 0:
        raise SystemExit(f"error: {' '.join(command)} failed: {script.stderr[-300:]}")
    return script.stdout


def reference_of(flags):
    """The flags in braces, those of another method; None where there are none."""
    _, brace, rest = flags.partition("{")
    return rest.partition("}")[0] if brace else None


def train_flags(flags, seed):
    """What train.py is given: the flags, with the number that the braces stand for."""
    reference = reference_of(flags)
    if reference is None:
        return flags.split()
    shown_raw = results(RESULTS)[reference, None, seed]["raw_bytes"]
    return flags.replace(f"{{{reference}}}", str(shown_raw)).split()


def train(flags, seed, folder):
    """The closing report of a training."""
    run_script("train.py", *train_flags(flags, seed), f"--seed={seed}", f"--out={folder}",
               "--overwrite", "--dtype=float32")
    return json.loads((folder / "report.json").read_text())


def measure(flags, task, folder):
    """The results of a task of eval.py. A tokenizer model reads and writes symbols."""
    view = "comp" if "--mix=1.0" in flags else "raw"
    printed = run_script("eval.py", str(folder), f"--view={view}", "--json",
                         f"--task={task}")
    return json.loads(printed.splitlines()[-1])


def commit():
    """The commit of the project's files, short; "" outside of git."""
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True,
                         capture_output=True)
    return git.stdout.strip()


def add_run(flags, task, seed):
    """Make one run, then add its row to the results."""
    name = re.sub("--|[/:]", "", f"{flags} --seed={seed}")
    folder = ROOT / "out" / "findings" / name
    if task is None or not (folder / "ckpt.pt").exists():
        found = train(flags, seed, folder)
    if task is not None:
        found = measure(flags, task, folder)

    row = {"flags": flags, "task": task, "seed": seed, "commit": commit()}
    for key, value in found.items():
        if not key.endswith("_95"):  # intervals over problems; the tables' are over seeds
            row[key] = value
    with open(RESULTS, "a") as f:
        f.write(json.dumps(row) + "\n")
    print(f"{flags} --seed={seed}, {task or 'training'}: done", flush=True)


def lacking(study):
    """The runs (flags, task, seed) that a study lacks, as three lists.

    First trainings, then those that need a number of the first, then what needs trained models.
    """
    trainings, dependent, tasks = [], [], []
    found = results(RESULTS)
    for methods in study.groups.values():
        for seed in study.seeds:
            for flags in methods.values():
                stage = dependent if reference_of(flags) else trainings
                stage.append((flags, None, seed))
                if study.task:
                    tasks.append((flags, study.task, seed))
    stages = []
    for stage in (trainings, dependent, tasks):
        once = dict.fromkeys(stage)  # groups share methods
        stages.append([key for key in once if key not in found])
    return stages


def complete(study):
    """Make all runs that a study lacks, as many at once as there are cores."""
    RESULTS.parent.mkdir(exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for stage in lacking(study):
            list(pool.map(lambda run: add_run(*run), stage))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--train", action="store_true", help="make the runs that it lacks first")
    options = parser.parse_args()
    if options.train:
        complete(STUDIES[options.study])
    print_table(options.study)


if __name__ == "__main__":
    main()
