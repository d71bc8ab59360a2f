"""
How good is a run, on raw bytes?

- bpb:       bits per byte of held-out text. --context and --stride slide a window over whole
             documents.
- pass:      pass@k of raw-byte completions, by running them on a problem file's tests (Chen et al.
             2021, arXiv 2107.03374). HumanEval's format, or that of HumanEval+ and MBPP+ (Liu et
             al. 2023, arXiv 2305.01210). And bits per byte of the problems' own solutions, given
             their prompts: the same skill, measured more smoothly.
- noise:     bits per byte of held-out text some of whose bytes are replaced.

lib/probes.py has the paper's other measurements, all on raw bytes, too:

- robust:    pass@1 when prompts are perturbed (ReCode: Wang et al. 2022, arXiv 2212.10264).
- translate: the right solution is given in one view, and the model writes it in the other (the
             paper's oracle translation).
- facts:     how many of tinycode's facts come back from a raw prompt: of those that may be seen
             raw, and of those that are only seen compressed.

With --view=comp the proxy's symbols are read and written instead, by a tokenizer model.

How completions are judged: each is run in a process of its own (lib/judge.py), which may use only
so much time and memory, and in which it can reach neither files nor network (lib/sandbox.py). It is
given the arguments of a test and gives back what its function returns; the results that are wanted
are in another process, which compares. So a completion cannot read them, and what it prints or how
it ends is no verdict: it cannot say itself that it has passed.

    python eval.py                                    the newest run under out/: bpb, pass, facts
    python eval.py out/neural out/none --task=all     side by side; what is known is not run again
    python eval.py --all                              every run under out/, and how they differ
    python eval.py --samples=samples.jsonl --problems=HumanEval.jsonl.gz     a file; needs no run
"""
import contextlib
import json
import math
import re
import sys
from dataclasses import asdict, dataclass, replace

import lib  # first: it says what is missing or too old
import numpy as np
import torch

from lib import probes
from lib.data import TINYCODE, parse_data, tinycode_file, tinycode_folder
from lib.options import UserError, command_line, expect, expect_one_of, flag, warn_once
from lib.parallel import resolve_device
from lib.perturb import add_noise
from lib.probes import choose_problems, complete_problems, score_rows, spread, with_interval
from lib.run import all_runs, newest_run
from lib.judge import (can_score, explain_failures, read_problems, read_samples,
                         uneven_samples)
from lib.tables import differing_options, plot, print_results, with_progress
from lib.views import COMP_ONLY, RAW_ONLY, write_file
from mix import prepare, suffixes
from model import BYTE0, NO_TARGET
from sample import Run

SAMPLES = 1000  # held-out samples that bits per byte are measured on by default
NOISE = (0.01, 0.05, 0.10)

# -----------------------------------------------------------------------------
# bits per byte


@dataclass
class Window:
    """Text as the model reads it to be scored."""
    symbols: np.ndarray  # (n,)
    suffix: np.ndarray   # (n,)
    targets: np.ndarray  # (n,) NO_TARGET where nothing is scored
    text_bytes: int      # bytes of text that the scored targets stand for


def raw_windows(text, sentinels, context, stride, scored=None):
    """Yields a text, uint8, as Windows of `context` symbols, each `stride` after the one before.

    They overlap if `stride` is smaller than `context`: a target is scored once, in the first window
    that has it, and so after at least context - stride symbols, except in the first window.

    scored: which bytes are scored at all, bool (n,); None for all.
    """
    opening, closing = sentinels
    targets = np.append(text.astype(np.int64) + BYTE0, closing)
    # the closing sentinel's bits count, but it is no byte of text
    wanted = np.ones(len(targets), bool)
    if scored is not None:
        wanted[:-1] = scored
    position = np.arange(len(targets))
    start = scored_up_to = 0
    while scored_up_to < len(targets):
        here = slice(start, start + context)
        before = targets[here][:-1]
        is_new = wanted[here] & (position[here] >= scored_up_to)
        is_byte = targets[here] >= BYTE0
        yield Window(
            symbols=np.append(opening, before),             # each opens so, even in mid-text
            suffix=suffixes(np.append(0, before - BYTE0)),  # the sentinel has no text: 0
            targets=np.where(is_new, targets[here], NO_TARGET),
            text_bytes=int((is_new & is_byte).sum()))
        scored_up_to = start + len(targets[here])
        start += stride


def symbol_window(run, text, prompt=b""):
    """A text, bytes, through the proxy as one Window. It is not cut, even if it is longer than a
    context.

    The bits are an upper bound. A text can be spelled in symbols in many ways, its probability is
    the sum over all of them, and this is the one that the proxy writes. (In raw bytes there is one
    way, and the bits are exact.) And of a text after a prompt: scoring starts at the first symbol
    that could be another one with another text, so the prompt's end may be paid for, too.
    """
    view = run.view("comp", prompt + text)
    targets = view.symbols[1:].copy()
    if prompt:
        given, _ = run.proxy.encode_prompt(prompt)  # what the view begins with, whatever the text
        targets[:len(given)] = NO_TARGET
    return Window(view.symbols[:-1], view.suffix[:-1], targets, len(text))


@torch.inference_mode()
def bits_per_byte(run, windows, batch_size):
    """Bits per byte of text, over all that the windows score.

    Each target pays for the whole of the model's distribution: after a raw byte also for ids that
    cannot follow there, <raw> among them, which sampling leaves out.
    """
    windows = sorted(windows, key=lambda window: len(window.symbols))  # for little padding
    nats = 0.0
    for start in with_progress(range(0, len(windows), batch_size), "bits per byte"):
        batch = windows[start:start + batch_size]
        longest = len(batch[-1].symbols)
        symbols = torch.zeros(len(batch), longest, dtype=torch.long)  # (B, T)
        suffix = torch.zeros_like(symbols)
        targets = torch.full_like(symbols, NO_TARGET)
        for row, window in enumerate(batch):
            n = len(window.symbols)
            symbols[row, :n] = torch.from_numpy(window.symbols)
            suffix[row, :n] = torch.from_numpy(window.suffix)
            targets[row, :n] = torch.from_numpy(window.targets)
        # a row has one text, and padding comes after it: plainly causal attention will do
        losses = run.model(symbols.to(run.device), targets.to(run.device), suffix.to(run.device))
        nats += losses.cpu().double().sum().item()  # MPS has no float64
    text_bytes = sum(window.text_bytes for window in windows)
    if text_bytes == 0:
        raise UserError("bits per byte: there is no held-out text to measure them on")
    return nats / math.log(2) / text_bytes


def held_out_texts(run, data, options):
    """At most --limit held-out texts of a corpus that may be shown in --view, a list of bytes:
    samples as training cuts them, or with --context whole documents."""
    # without a proxy, `prepare` fits none: it wants text for this view alone
    mix = 0.0 if options.view == "raw" else 1.0
    only_text = replace(run.options, data=data, proxy="none", mix=mix)
    with contextlib.redirect_stdout(sys.stderr):  # results alone go to stdout
        views, _, _ = prepare(only_text, run.model.config.block_size)
    if data == run.options.data and views.id != run.made_from.get("corpus", views.id):
        warn_once(f"{run.folder}: --data={data}, or the code that reads it, has changed since its "
                  "training, so what is held out now may have been trained on")
    limit = options.limit or SAMPLES
    if options.context:
        return spread(views.held_out_documents(), limit)
    not_shown = COMP_ONLY if options.view == "raw" else RAW_ONLY
    usable = np.flatnonzero(views.held_out & (views.allowed != not_shown))
    return [views.raw(i).tobytes() for i in spread(usable, limit)]


def measure_bpb(run, options):
    """{"bpb": bits per byte of held-out samples}, or "bpb_comp" through the proxy.

    With --context of whole documents; with --data a number for each of those corpora.
    """
    block_size = run.model.config.block_size
    if options.context > block_size:
        raise UserError(f"--context={options.context}: expected at most {block_size}, as the model "
                        "was trained with")
    context = options.context or block_size
    stride = options.stride or max(1, context // 2)
    name = "bpb" if options.view == "raw" else "bpb_comp"
    corpora = {name: run.options.data}
    if options.data:
        names, _ = parse_data(options.data)  # their weights say nothing here
        corpora = {f"{name} {data}": data for data in names}
    results = {}
    for name, data in corpora.items():
        windows = []
        for text in held_out_texts(run, data, options):
            if options.view == "raw":
                text = np.frombuffer(text, np.uint8)
                windows += raw_windows(text, run.sentinels("raw"), context, stride)
            else:
                windows.append(symbol_window(run, text))
        results[name] = bits_per_byte(run, windows, options.batch_size)
    return results


def measure_noise(run, options):
    """Bits per byte of the untouched bytes of held-out samples, some of whose bytes are replaced.

    What a replaced byte costs says nothing and is left out; what it does to the others counts.
    """
    context = run.model.config.block_size
    results = {}
    for share in NOISE:
        rng = np.random.default_rng(0)
        windows = []
        for text in held_out_texts(run, run.options.data, replace(options, view="raw", context=0)):
            noisy, replaced = add_noise(np.frombuffer(text, np.uint8), share, rng)
            windows += raw_windows(noisy, run.sentinels("raw"), context, context, ~replaced)
        results[f"bpb, {share:.0%} noise"] = bits_per_byte(run, windows, options.batch_size)
    return results


def measure_solutions(run, problems, options):
    """{"bpb_solutions": bits per byte of the problems' solutions, each given its prompt}.

    Through the proxy it is "bpb_solutions_comp". {} if no problem has a solution.
    """
    context = run.model.config.block_size
    windows = []
    for problem in problems.values():
        prompt = problem["prompt"].encode()
        solution = (problem.get("canonical_solution") or "").encode()
        if not solution:
            continue
        if options.view == "raw":
            text = np.frombuffer(prompt + solution, np.uint8)
            of_solution = np.arange(len(text)) >= len(prompt)
            windows += raw_windows(text, run.sentinels("raw"), context, context // 2, of_solution)
        else:
            windows.append(symbol_window(run, solution, prompt))
    if not windows:
        return {}
    name = "bpb_solutions" if options.view == "raw" else "bpb_solutions_comp"
    return {name: bits_per_byte(run, windows, options.batch_size)}


# -----------------------------------------------------------------------------
# pass@k


def pass_at_k(n, c, k):
    """The chance that any of k completions is right, drawn from n of which c are: 1 - C(n-c, k) /
    C(n, k) (Chen et al. 2021, eq. 1).

    It is the mean over all C(n, k) subsets of whether one of the k is right. Each k-subset of n
    independent completions is k independent completions, so the mean over subsets estimates what k
    completions do without a bias, and with less noise than any one subset. 1 - (1 - c/n)**k would
    draw the same completion again and again, and come out too low.
    """
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def pass_rates(scored, ks):
    """pass@k of scored rows for each k in `ks` that has enough completions; "base_pass@k" by the
    tests of HumanEval and MBPP alone, where the file is of HumanEval+ or MBPP+."""
    results = {}
    for prefix, key in (("", "passed"), ("base_", "base_passed")):
        verdicts = {}
        for row in scored:
            if key in row:
                verdicts.setdefault(row["task_id"], []).append(row[key])
        fewest = min(map(len, verdicts.values()), default=0)
        for k in ks:
            if fewest >= k:
                rates = [pass_at_k(len(passed), sum(passed), k) for passed in verdicts.values()]
                results |= with_interval(f"{prefix}pass@{k}", rates)
    return results


def score_samples(problems, samples, options):
    """(pass@k of the samples, a dict, and the scored rows, which --save writes)."""
    scored, known = score_rows(problems, samples, options)
    if options.save:
        lines = [json.dumps(row) + "\n" for row in scored]
        write_file(options.save, "".join(lines).encode())
    return known | pass_rates(scored, options.ks()), scored


def pass_by_operations(problems, scored):
    """pass@1 of the problems with two operations, with three .., where they name the families of
    theirs, as tinycode's do: {"pass@1, 2 operations": ..}."""
    by_count = {}
    for row in scored:
        families = problems[row["task_id"]].get("families")
        if families:
            by_count.setdefault(len(families), []).append(row)
    results = {}
    for count, rows in sorted(by_count.items()):
        for name, value in pass_rates(rows, [1]).items():
            results[name.replace("pass@1", f"pass@1, {count} operations")] = value
    return results


def measure_pass(run, options):
    """pass@k of the problems, pass@1 by the number of their operations, and bits per byte of their
    solutions."""
    problems, results = choose_problems(run, options)
    prompts = {task_id: problem["prompt"] for task_id, problem in problems.items()}
    completions = complete_problems(run, prompts, options.n, options, options.temperature)
    samples = []
    for task_id, texts in completions.items():
        samples += [{"task_id": task_id, "completion": text} for text in texts]
    rates, scored = score_samples(problems, samples, options)
    results |= rates | pass_by_operations(problems, scored)
    return results | measure_solutions(run, problems, options)


def measure_samples_file(options):
    """What a file of somebody's completions is worth, a dict; stderr says how they failed."""
    problems = read_problems(options.problems or tinycode_file(TINYCODE, "problems.jsonl"))
    samples = read_samples(options.samples, problems)
    results = uneven_samples(problems, samples)
    rates, scored = score_samples(problems, samples, options)
    explain_failures(problems, scored)
    return results | rates


# -----------------------------------------------------------------------------
# the options

# what can be measured: functions (run, options) -> {name: number}; name_95 is an interval of name
TASKS = {"bpb": measure_bpb, "pass": measure_pass, "noise": measure_noise} | probes.TASKS
# options that say what is done with the numbers, and decide none
NOT_SETTINGS = ("runs", "task", "again", "all", "batch_size", "samples", "unconfined", "save",
                "plot", "json", "device")


@dataclass
class EvalOptions:
    runs: tuple = flag((), "folders of runs [the newest under out/]", positional=True, nargs="*")
    task: str = flag("", f"what to measure, with commas: {', '.join(TASKS)}, or all [bpb, and "
                     "pass and facts for tinycode]")
    again: bool = flag(False, "results measured again that are in a run's results.json")
    view: str = flag("raw", "what is read and written: raw bytes, or the proxy's symbols, as by a "
                     "tokenizer model", choices=("raw", "comp"))
    all: bool = flag(False, "all runs under out/, the newest last, with the options in which they "
                     "differ")
    # bits per byte
    limit: int = flag(0, "most held-out samples for bpb and noise, most problems for the others, "
                      f"spread evenly; 0: {SAMPLES:,} samples, all problems")
    context: int = flag(0, "bpb: symbols in a window over whole documents; training shows half "
                       "a context at once. 0: training's samples")
    stride: int = flag(0, "bpb: symbols from one window to the next [half of --context]")
    data: str = flag("", "bpb: corpora, with commas [the run's own]")
    batch_size: int = flag(64, "bpb: samples at once; the result does not depend on it")
    # completions and their tests
    problems: str = flag("", "pass, robust, translate: file in the format of HumanEval, HumanEval+ "
                         "or MBPP+ [tinycode's]")
    n: int = flag(10, "pass: completions of each problem")
    k: str = flag("1,10", "pass: the k of pass@k, with commas")
    temperature: float = flag(None, "pass: temperature; 0 is greedy [0.2, and 0 where n is 1]",
                              type=float)
    max_new: int = flag(256, "pass, robust: bytes of a completion at most")
    timeout: float = flag(3.0, "seconds for a completion's tests, more where the canonical "
                          "solution needs it")
    memory: int = flag(4096, "megabytes for a completion's tests")
    seed: int = flag(0, "pass: seed of the sampling")
    perturbations: int = flag(3, "robust: seeds of each kind; a problem must be solved under all")
    # what goes in and out
    samples: str = flag(None, "file of completions to score, JSON lines {task_id, completion}; "
                        "needs no run")
    unconfined: bool = flag(False, "samples: run them also where this machine can't hold them")
    save: str = flag(None, "pass: file for the completions and verdicts, in the same form")
    plot: str = flag(None, "PNG for bits per byte against compute, and pass@k (needs matplotlib)")
    json: bool = flag(False, "results as one line of JSON, last")
    device: str = flag("cpu", "cpu, cuda, mps or auto")

    def resolve(self):
        """Fill in what depends on other options. Raises UserError for what cannot be."""
        for task in self.tasks():
            expect_one_of("task", task, TASKS)
        expect(self, "above 0", "n", "max_new", "timeout", "memory", "batch_size",
               "perturbations")
        expect(self, "of 0 or more", "limit", "context", "stride")
        expect(self, "from 0 to 2**63 - 1", "seed")
        if self.all and (self.runs or self.samples):
            named = self.samples or self.runs[0]
            raise UserError(f"--all: expected no other run or file, found {named}; leave one out")
        if self.save and (self.all or len(self.runs) > 1):
            raise UserError(f"--save={self.save}: expected one run, whose completions go there; "
                            "name one")
        if self.plot and not self.plot.endswith(".png"):
            raise UserError(f"--plot={self.plot}: expected the name of a .png file")
        if self.samples and self.runs:
            raise UserError(f"--samples={self.samples}: is scored without a run; leave out "
                            f"{self.runs[0]}")
        if self.temperature is None:
            self.temperature = 0.0 if self.n == 1 else 0.2
        expect(self, "of 0 or more", "temperature")
        if self.stride > self.context:
            raise UserError(f"--stride={self.stride}: expected at most --context={self.context}, "
                            "the size of a window, or bytes are left out")
        if self.context and self.view == "comp":
            raise UserError(f"--context={self.context} --view=comp: windows are of raw bytes; "
                            "leave one out")
        self.device = resolve_device(self.device)
        if min(self.ks()) > self.n and not self.samples:
            raise UserError(f"--k={self.k}: expected one that is not above --n={self.n}, the "
                            "number of completions")

    def tasks(self):
        if self.task == "all":
            return list(TASKS)
        return [task for task in self.task.split(",") if task]

    def ks(self):
        if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", self.k):
            raise UserError(f"--k={self.k}: expected positive numbers with commas between, such as "
                            "1,10")
        return [int(k) for k in self.k.split(",")]

    def settings(self):
        """All options that a result may depend on, a dict."""
        return {name: value for name, value in asdict(self).items() if name not in NOT_SETTINGS}


# -----------------------------------------------------------------------------
# runs and their tasks


def default_tasks(run):
    """Those of the closing report of a training."""
    is_tinycode = tinycode_folder(run.options.data)
    return ["bpb", "pass", "facts"] if is_tinycode and can_score() else ["bpb"]


def evaluate(run, options, tasks=None, results=None):
    """The results of the tasks for a Run: numbers, intervals, and of how many problems.

    results: the dict to fill; if this is interrupted, it has what was done. What the run's folder
    keeps is not measured again. Raises UserError.
    """
    options.resolve()
    results = {} if results is None else results
    settings = options.settings()
    for task in tasks or options.tasks() or default_tasks(run):
        found = None
        if not options.again and not options.save:  # --save needs completions: none are kept
            found = run.results.kept(task, settings)
        if found is None:
            found = TASKS[task](run, options)
            run.results.keep(task, settings, found)
        results |= found
    return results


def measure_runs(options, table, trained_with):
    """Fill two dicts by run: `table` with its results, `trained_with` with its options.

    With --all a run that can't be measured is left out, and a line on stderr says why.
    """
    folders = all_runs() if options.all else options.runs or [newest_run()]
    for folder in map(str, folders):
        try:
            run = Run.load(folder, options.device)
            trained_with[folder] = run.trained_with
            table[folder] = {}
            evaluate(run, options, results=table[folder])
        except UserError as error:
            if not options.all:
                raise
            table.pop(folder, None)
            trained_with.pop(folder, None)
            print(f"{folder} left out: {error}", file=sys.stderr)
    if not table:
        raise UserError("--all: none of the runs under out/ can be measured, as said above")


# -----------------------------------------------------------------------------
# python eval.py


def main(options):
    options.resolve()
    table = {}         # {run: results}
    trained_with = {}  # {run: its options}
    stopped_by = None
    try:
        if options.samples:
            table[options.samples] = measure_samples_file(options)
        else:
            measure_runs(options, table, trained_with)
    except UserError as error:
        if not any(table.values()):  # nothing is done yet
            raise
        stopped_by = error
    except KeyboardInterrupt as error:
        stopped_by = error
        print("interrupted; what is done is below", file=sys.stderr)
    differing = differing_options(trained_with)
    print_results({run: differing.get(run, {}) | results for run, results in table.items()})
    if options.plot:
        plot(table, options.plot)
    if options.json:
        alone = len(table) == 1 and not options.all  # --all is by run, however many there are
        print(json.dumps(next(iter(table.values())) if alone else table))
    if stopped_by:
        raise stopped_by


if __name__ == "__main__":
    command_line(main, EvalOptions, description="Measures runs on raw bytes.")
