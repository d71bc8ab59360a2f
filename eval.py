"""
How good is a run, on raw bytes?

- bpb:    bits per byte of held-out text. --context and --stride slide a window over whole
          documents.
- pass:   pass@k of completions, by running them on a problem file's tests (Chen et al. 2021, arXiv
          2107.03374). And bits per byte of the problems' own solutions, given their prompts: the
          same skill, measured more smoothly.
- noise:  bits per byte of held-out text some of whose bytes are replaced; always raw bytes.
- robust, translate, facts: the paper's other measurements, in lib/probes.py.

With --view=comp bpb, pass, robust and facts read and write the proxy's symbols instead, as a
tokenizer model does.

How completions are judged: each is run in a process of its own (lib/judge.py), which may use only
so much time and memory, and can reach neither your files nor the network (lib/sandbox.py). It is
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
from collections import defaultdict
from dataclasses import asdict, dataclass, replace

import lib  # first: it says what is missing or too old
import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from lib import probes
from lib.judge import can_score, explain_failures, read_problems, read_samples, uneven_samples
from lib.options import UserError, command_line, expect, expect_one_of, flag, warn_once
from lib.parallel import resolve_device
from lib.probes import choose_problems, complete_problems, score_rows, spread, with_interval
from lib.run import all_runs, newest_run
from lib.tables import differing_options, plot, print_results, with_progress
from lib.views import COMP_ONLY, RAW_ONLY, tinycode_file, write_file
from mix import prepare, suffixes
from model import BYTE0, NO_TARGET
from sample import Run

SAMPLES = 1000  # held-out samples that bits per byte are measured on by default
BATCH = 64      # windows that the model reads at once
NOISE = (0.01, 0.05, 0.10)

# -----------------------------------------------------------------------------
# bits per byte


@dataclass
class Window:
    """Text as the model reads it to be scored. (Not one of the neural coder's windows.)"""
    symbols: np.ndarray  # (n,)
    suffix: np.ndarray   # (n,) the text that ends with each symbol, packed
    targets: np.ndarray  # (n,) NO_TARGET where nothing is scored
    text_bytes: int      # bytes of text that the scored targets stand for


def raw_windows(text, scored, sentinels, context, stride):
    """Yields a text, uint8 (n,), as Windows of `context` symbols, each `stride` after the one
    before. scored: bool (n,), which bytes count. With a context of 8 and a stride of 4 the targets:

        def f(x): return x
        def f(x)                all are scored
            f(x): re            the last four, each after at least four bytes
                : return        ..

    So a target is scored once, in the first window that has it.
    """
    opening, closing = sentinels
    symbols = np.append(text.astype(np.int64) + BYTE0, closing)
    # the closing sentinel's bits count, but it is no byte of text
    targets = np.where(np.append(scored, True), symbols, NO_TARGET)
    start = done = 0  # targets before `done` have been scored
    while done < len(symbols):
        end = min(start + context, len(symbols))
        before = symbols[start:end - 1]  # what stands before each target but the first
        new_targets = targets[start:end].copy()
        new_targets[:done - start] = NO_TARGET
        yield Window(
            symbols=np.append(opening, before),             # each opens so, even in mid-text
            suffix=np.append(0, suffixes(before - BYTE0)),  # 0: the sentinel ends no text
            targets=new_targets,
            text_bytes=int((new_targets >= BYTE0).sum()))
        done = end
        start += stride


def symbol_window(run, text, prompt):
    """A text after a prompt, bytes, through the proxy as one Window. It is not cut, even if it is
    longer than a context.

    The bits are an upper bound. A text can be spelled in symbols in many ways, its probability is
    the sum over all of them, and this is the one that the proxy writes. (In raw bytes there is one
    way, and the bits are exact.) A prompt's last symbols may be spelled otherwise once text
    follows: they are scored too, so its end is paid for.
    """
    view = run.view("comp", prompt + text)
    targets = view.symbols[1:].copy()
    if prompt:
        given, _ = run.proxy.encode_prompt(prompt)  # what the view begins with, whatever the text
        targets[:len(given)] = NO_TARGET
    return Window(view.symbols[:-1], view.suffix[:-1], targets, len(text))


def windows_of(run, view, text, prompt=b"", context=0, stride=0):
    """A text, bytes, as Windows of a view, in which it stands after a prompt that is not scored.

    Raw bytes are shown in windows of `context` symbols [the model's], each `stride` after the one
    before [half of context].
    """
    if view == "comp":
        return [symbol_window(run, text, prompt)]
    context = context or run.model.config.block_size
    stride = stride or max(1, context // 2)
    both = np.frombuffer(prompt + text, np.uint8)
    scored = np.arange(len(both)) >= len(prompt)  # the text, and not the prompt
    return raw_windows(both, scored, run.sentinels("raw"), context, stride)


def padded(arrays, value, device):
    """Arrays (n,) of different lengths as one tensor (B, T), with `value` at the end."""
    rows = [torch.from_numpy(array).long() for array in arrays]
    return pad_sequence(rows, batch_first=True, padding_value=value).to(device)


@torch.inference_mode()
def bits_per_byte(run, windows):
    """Bits per byte of text, over all that the windows score.

    Each target pays for the whole of the model's distribution. After a raw byte that is over bytes
    and special symbols, also such as cannot follow there, <raw> say, which sampling leaves out.
    """
    windows = sorted(windows, key=lambda window: len(window.symbols))  # for little padding
    nats = 0.0
    for start in with_progress(range(0, len(windows), BATCH), "bits per byte"):
        batch = windows[start:start + BATCH]
        symbols = padded([window.symbols for window in batch], 0, run.device)  # (B, T)
        suffix = padded([window.suffix for window in batch], 0, run.device)
        targets = padded([window.targets for window in batch], NO_TARGET, run.device)
        # a row has one text, and padding comes after it: plainly causal attention will do
        losses = run.model(symbols, targets, suffix)  # (B, T) in nats, 0 where nothing is scored
        nats += losses.cpu().double().sum().item()  # MPS has no float64
    text_bytes = sum(window.text_bytes for window in windows)
    if text_bytes == 0:
        raise UserError("bits per byte: there is no held-out text to measure them on")
    return nats / math.log(2) / text_bytes  # a bit is log(2) nats


def held_out_texts(run, data, view, limit=0, whole=False):
    """At most `limit` [SAMPLES] held-out texts of a corpus that may be shown in a view, a list of
    bytes: samples as a run without a proxy cuts them, or whole documents."""
    # only the text is wanted: "none" spares the fit, and `mix` says which view needs samples
    mix = 0.0 if view == "raw" else 1.0
    column = run.options.text_column if data == run.options.data else ""
    only_text = replace(run.options, data=data, text_column=column, proxy="none", mix=mix)
    with contextlib.redirect_stdout(sys.stderr):  # results alone go to stdout
        views, _, _ = prepare(only_text, run.model.config.block_size)
    if data == run.options.data and views.id != run.made_from.get("corpus", views.id):
        warn_once(f"{run.folder}: --data={data}, or the code that reads it, has changed since its "
                  "training, so what is held out now may have been trained on")
    if whole:
        return spread(views.held_out_documents(), limit or SAMPLES)
    not_shown = COMP_ONLY if view == "raw" else RAW_ONLY
    usable = np.flatnonzero(views.held_out & (views.allowed != not_shown))
    return [views.raw(i).tobytes() for i in spread(usable, limit or SAMPLES)]


def measure_bpb(run, options):
    """{"bpb": bits per byte of held-out samples}, or "bpb_comp" through the proxy.

    With --context of whole documents; with --data of another corpus, which the name then tells.
    """
    context, stride = options.context, options.stride
    block_size = run.model.config.block_size
    if not stride <= context <= block_size:
        raise UserError(f"--context={context} --stride={stride}: expected a stride of at most the "
                        f"context, and a context of at most {block_size}, the model's")
    name = "bpb" if options.view == "raw" else "bpb_comp"
    if options.data:
        name += f" {options.data}"
    data = options.data or run.options.data
    windows = []
    for text in held_out_texts(run, data, options.view, options.limit, whole=context > 0):
        windows += windows_of(run, options.view, text, context=context, stride=stride)
    return {name: bits_per_byte(run, windows)}


def measure_noise(run, options):
    """Bits per byte of the untouched bytes of held-out samples, some of whose bytes are replaced.

    What a replaced byte costs says nothing and is left out; what it does to the others counts.
    """
    context = run.model.config.block_size
    texts = held_out_texts(run, run.options.data, "raw", options.limit)
    results = {}
    for share in NOISE:
        rng = np.random.default_rng(0)
        windows = []
        for text in texts:
            noisy = np.frombuffer(text, np.uint8).copy()
            replaced = rng.random(len(noisy)) < share  # (n,) bool
            noisy[replaced] = rng.integers(256, size=replaced.sum())  # any byte
            windows += raw_windows(noisy, ~replaced, run.sentinels("raw"), context, context)
        results[f"bpb, {share:.0%} noise"] = bits_per_byte(run, windows)
    return results


def measure_solutions(run, problems, options):
    """{"bpb_solutions": bits per byte of the problems' solutions, each given its prompt}.

    Through the proxy it is "bpb_solutions_comp". {} if no problem has a solution.
    """
    windows = []
    for problem in problems.values():
        solution = problem.get("canonical_solution")
        if solution:  # some files have none, or not of all problems
            prompt = problem["prompt"].encode()
            windows += windows_of(run, options.view, solution.encode(), prompt)
    if not windows:
        return {}
    name = "bpb_solutions" if options.view == "raw" else "bpb_solutions_comp"
    return {name: bits_per_byte(run, windows)}


# -----------------------------------------------------------------------------
# pass@k


def pass_at_k(n, c, k):
    """The chance that any of k completions is right, drawn from n of which c are: 1 - C(n-c, k) /
    C(n, k) (Chen et al. 2021, eq. 1).

    It is the mean over all C(n, k) subsets of whether one of the k is right. Each k-subset of n
    independent completions is k independent completions, so the mean over subsets estimates what k
    completions do without bias, and with less noise than any one subset. 1 - (1 - c/n)**k would
    draw the same completion again and again, and come out too low.
    """
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def pass_rates(problems, scored, ks):
    """pass@k of scored rows for each k in `ks` that has enough completions.

    Where the file is of HumanEval+ or MBPP+, "base_pass@k" is by the tests of HumanEval and MBPP
    alone. Where problems name the families of their operations, as tinycode's do, there is
    "pass@k, 2 operations" and so on.
    """
    verdicts = defaultdict(lambda: defaultdict(list))  # {name: {task_id: [has it passed?, ..]}}
    for row in scored:
        task_id = row["task_id"]
        verdicts["pass@k"][task_id].append(row["passed"])
        if "base_passed" in row:
            verdicts["base_pass@k"][task_id].append(row["base_passed"])
        families = problems[task_id].get("families")
        if families:
            verdicts[f"pass@k, {len(families)} operations"][task_id].append(row["passed"])
    results = {}
    for name, by_problem in verdicts.items():
        fewest = min(map(len, by_problem.values()))  # completions of a problem
        for k in ks:
            if k <= fewest:
                rates = [pass_at_k(len(passed), sum(passed), k) for passed in by_problem.values()]
                results |= with_interval(name.replace("@k", f"@{k}"), rates)
    return results


def score_samples(problems, samples, options):
    """(pass@k of the samples, a dict, and the scored rows, which --save writes)."""
    scored, notes = score_rows(problems, samples, options)
    if options.save:
        lines = [json.dumps(row) + "\n" for row in scored]
        write_file(options.save, "".join(lines).encode())
    return notes | pass_rates(problems, scored, options.ks()), scored


def measure_pass(run, options):
    """pass@k of the problems, and bits per byte of their solutions."""
    problems, notes = choose_problems(run, options)
    prompts = {task_id: problem["prompt"] for task_id, problem in problems.items()}
    completions = complete_problems(run, prompts, options.n, options, options.temperature)
    samples = []
    for task_id, texts in completions.items():
        samples += [{"task_id": task_id, "completion": text} for text in texts]
    rates, _ = score_samples(problems, samples, options)
    return notes | rates | measure_solutions(run, problems, options)


def measure_samples_file(options):
    """What a file of somebody's completions is worth, a dict; stderr says how they failed."""
    problems = read_problems(options.problems or tinycode_file("tinycode", "problems.jsonl"))
    samples = read_samples(options.samples, problems)
    results = uneven_samples(problems, samples)
    rates, scored = score_samples(problems, samples, options)
    explain_failures(problems, scored)
    return results | rates


# -----------------------------------------------------------------------------
# the options

# what can be measured: function(run, options) -> {name: number or text}; name_95 is name's interval
TASKS = {"bpb": measure_bpb, "pass": measure_pass, "noise": measure_noise} | probes.TASKS
# options that say what is done with the numbers, and change none
NOT_SETTINGS = ("runs", "task", "again", "all", "samples", "unconfined", "save", "plot", "json",
                "device")


@dataclass
class EvalOptions:
    runs: tuple = flag((), "folders of runs [the newest under out/]", positional=True, nargs="*")
    task: str = flag("", f"what to measure, with commas: {', '.join(TASKS)}, or all [bpb, and "
                     "pass and facts for tinycode]")
    again: bool = flag(False, "measure again what is in a run's results.json")
    view: str = flag("raw", "what is read and written: raw bytes or, as by a tokenizer model, the "
                     "proxy's symbols", choices=("raw", "comp"))
    all: bool = flag(False, "all runs under out/, the newest last")
    # bits per byte
    limit: int = flag(0, "most held-out samples for bpb and noise, most problems for pass, "
                      f"robust and translate, spread evenly; 0: {SAMPLES:,} samples, all problems")
    context: int = flag(0, "bpb: symbols in a window over whole documents; training's samples "
                       "fill at most half a context. 0: these samples")
    stride: int = flag(0, "bpb: symbols from one window to the next [half of --context]")
    data: str = flag("", "bpb: another corpus [the run's own]")
    # completions and their tests
    problems: str = flag("", "problem file, like HumanEval's, HumanEval+'s or MBPP+'s [tinycode's]")
    n: int = flag(10, "pass: completions of each problem")
    k: str = flag("1,10", "pass: the k of pass@k, with commas")
    temperature: float = flag(None, "pass: temperature; 0 is greedy [0.2, and 0 where n is 1]",
                              type=float)
    max_new: int = flag(256, "pass, robust: bytes of a completion at most")
    timeout: float = flag(3.0, "seconds for a completion's tests, more where the canonical "
                          "solution needs it")
    seed: int = flag(0, "pass: seed of the sampling")
    perturbations: int = flag(3, "robust: seeds of each kind; a problem must be solved under all")
    # what goes in and out
    samples: str = flag(None, "JSON lines {task_id, completion} to score; needs no run")
    unconfined: bool = flag(False, "samples: run them also where this machine can't hold them")
    save: str = flag(None, "pass: file for the completions and verdicts, in the same form")
    plot: str = flag(None, "PNG for bits per byte against compute, and pass@k (needs matplotlib)")
    json: bool = flag(False, "results as one line of JSON, last")
    device: str = flag("cpu", "cpu, cuda, mps or auto")

    def resolve(self):
        """Fill in what depends on other options. Raises UserError for what cannot be."""
        for task in self.tasks():
            expect_one_of("task", task, TASKS)
        expect(self, "above 0", "n", "max_new", "timeout", "perturbations")
        expect(self, "of 0 or more", "limit", "context", "stride")
        expect(self, "from 0 to 2**63 - 1", "seed")
        if self.temperature is None:
            self.temperature = 0.0 if self.n == 1 else 0.2
        expect(self, "of 0 or more", "temperature")
        if bool(self.runs) + self.all + bool(self.samples) > 1:
            raise UserError("--all, --samples and names of runs: expected one of these")
        if self.save and (self.all or len(self.runs) > 1):
            raise UserError(f"--save={self.save}: expected one run, whose completions go there; "
                            "name one")
        if self.save and self.task and "pass" not in self.tasks():
            raise UserError(f"--save={self.save}: expected pass among --task={self.task}, whose "
                            "completions go there")
        if self.context and self.view == "comp":
            raise UserError(f"--context={self.context} --view=comp: windows are of raw bytes; "
                            "leave one out")
        if min(self.ks()) > self.n and not self.samples:
            raise UserError(f"--k={self.k}: expected one that is not above --n={self.n}, the "
                            "number of completions")
        self.device = resolve_device(self.device)

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
    """bpb; with tinycode also pass and facts, except on Windows, where nothing is judged."""
    has_facts = tinycode_file(run.options.data, "facts.jsonl")
    return ["bpb", "pass", "facts"] if has_facts and can_score() else ["bpb"]


def evaluate(run, options):
    """The results of the tasks for a Run: {name: number or text}, and name_95 for an interval.

    What the run's folder keeps is not measured again. options: resolved. Raises UserError.
    """
    settings = options.settings()
    results = {}
    for task in options.tasks() or default_tasks(run):
        # --save needs completions, and none are kept
        anew = options.again or (options.save and task == "pass")
        found = None if anew else run.results.kept(task, settings)
        if found is None:
            found = TASKS[task](run, options)
            run.results.keep(task, settings, found)
        results |= found
    return results


def measure_runs(options):
    """({run: its results}, {run: the options of its training}).

    With --all a run that can't be measured is left out, and a line on stderr says why.
    """
    table, trained_with = {}, {}
    folders = all_runs() if options.all else options.runs or [newest_run()]
    for folder in map(str, folders):
        try:
            run = Run.load(folder, options.device)
            table[folder] = evaluate(run, options)
            trained_with[folder] = run.trained_with
        except UserError as error:
            if not options.all:
                raise
            print(f"{folder} left out: {error}", file=sys.stderr)
    if not table:
        raise UserError("--all: none of the runs under out/ can be measured, as said above")
    return table, trained_with


# -----------------------------------------------------------------------------
# python eval.py


def main(options):
    options.resolve()
    if options.samples:
        table = {options.samples: measure_samples_file(options)}
        trained_with = {options.samples: {}}
    else:
        table, trained_with = measure_runs(options)
    differing = differing_options(trained_with)
    print_results({run: differing[run] | results for run, results in table.items()})
    if options.plot:
        plot(table, options.plot)
    if options.json:
        several = len(table) > 1
        print(json.dumps(table if several else next(iter(table.values()))))


if __name__ == "__main__":
    command_line(main, EvalOptions, description="Measures runs on raw bytes.")
