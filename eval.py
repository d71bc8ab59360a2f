"""
How good is a run, on raw bytes?

- bpb:       bits per byte of held-out text. --context and --stride slide a window over whole
             documents.
- pass:      pass@k of raw-byte completions, by running them on a problem file's tests (Chen et al.
             2021, arXiv 2107.03374). HumanEval's format, or that of HumanEval+ and MBPP+ (Liu et
             al. 2023, arXiv 2305.01210). And bits per byte of the problems' own solutions, given
             their prompts: the same skill, measured more smoothly.
- robust:    pass@1 when prompts are perturbed in four ways (ReCode: Wang et al. 2022, arXiv
             2212.10264), and bits per byte under byte noise.
- translate: the right solution is given in one view, and the model writes it in the other (the
             paper's oracle translation).
- facts:     how many of tinycode's facts come back from a raw prompt: of those that may be seen
             raw, and of those that are only seen compressed.

With --view=comp the proxy's symbols are read and written instead, by a tokenizer model. (robust is
then without noise, and translate as it is.)

    python eval.py                                    the newest run under out/: bpb, pass, facts
    python eval.py out/neural out/none --task=all     side by side; what is known is not run again
    python eval.py --all                              every run under out/, and how they differ
    python eval.py --samples=samples.jsonl --problems=HumanEval.jsonl.gz     a file; needs no run
"""
import functools
import json
import math
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import lib  # first: it says what is missing or too old
import numpy as np
import torch

from lib import store
from lib.run import all_runs, newest_run
from lib.corpus import TINYCODE, parse_data, tinycode_file, tinycode_folder
from lib.eval_options import SAMPLES, TASKS, EvalOptions
from lib.options import UserError, command_line
from lib.perturb import PERTURBATIONS, perturb
from lib.tables import differing_options, plot, print_results
from lib.results import MEASURING, Completions, Kept, code_hash, digest
from lib.rows import read_jsonl
from lib.scoring import (can_score, count_of_canonical_failures, explain_failures, read_problems,
                         read_samples, score, uneven_samples)
from lib.tables import with_progress
from mix import COMP, END_COMP, END_RAW, RAW, format_view, prepare, suffixes
from model import BYTE0, NO_TARGET, PROXY0
from proxies import load_proxy
from sample import (complete, complete_in_symbols, continue_views, load_model, mix_options,
                    raw_sentinels)

# What ends a function: HumanEval's stop sequences, and decorators. Where a file has prompts without
# a `def`, as MBPP's, the function is still to come, and evalplus's stop sequences are used.
STOPS = (b"\nclass", b"\ndef", b"\n#", b"\nif", b"\nprint", b"\n@")
STOPS_WITHOUT_DEF = (b'\n"""', b"\nassert", b"\nif __name__", b"\nprint(", b"\ndef main(")
ROWS_AT_ONCE = 256   # completions that are written side by side
NOISE = (0.01, 0.05, 0.10)
CHANCE_OF_A_FACT = 1 / 9000  # each fact is one of 9,000 numbers


def spread(items, n):
    """At most n of the items, spread evenly over them."""
    chosen = np.linspace(0, len(items) - 1, min(n, len(items))).astype(int)
    return [items[i] for i in chosen]


def with_interval(name, values):
    """{name: the mean of the values, name_95: [low, high]}, a bootstrap interval over problems.

    10,000 draws with seed 0; the interval leaves out 2.5 % on either side.
    """
    values = np.array(values, dtype=float)
    draws = np.random.default_rng(0).integers(len(values), size=(10_000, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), (2.5, 97.5))
    return {name: float(values.mean()), f"{name}_95": [float(low), float(high)]}


# -----------------------------------------------------------------------------
# bits per byte


@dataclass
class Window:
    """Text as the model reads it to be scored."""
    symbols: np.ndarray  # (n,)
    suffix: np.ndarray   # (n,)
    targets: np.ndarray  # (n,) NO_TARGET where nothing is scored
    text_bytes: int      # bytes of text that the scored targets stand for


def raw_windows(text, sentinels, context, stride, noise=0.0, rng=None, prompt_bytes=0):
    """Yields a text, uint8, as Windows of `context` symbols, each `stride` after the one before.

    They overlap if `stride` is smaller than `context`: a target is scored once, in the first window
    that has it, and so after at least context - stride symbols, except in the first window.

    noise: the share of the bytes that are replaced by random ones, drawn with `rng`. These are not
    scored, since what they cost says nothing; what they do to the others is. prompt_bytes: how many
    bytes at the beginning are read but not scored.
    """
    opening, closing = sentinels
    targets = np.append(text.astype(np.int64) + BYTE0, closing)
    replaced = np.zeros(len(targets), bool)
    if noise:
        replaced[:-1] = rng.random(len(text)) < noise
        targets[replaced] = BYTE0 + rng.integers(256, size=replaced.sum())
    position = np.arange(len(targets))
    start, scored_up_to = 0, prompt_bytes
    while scored_up_to < len(targets):
        here = slice(start, start + context)
        before = targets[here][:-1]
        is_new = (position[here] >= scored_up_to) & ~replaced[here]
        is_byte = targets[here] >= BYTE0
        yield Window(
            symbols=np.append(opening, before),         # every window opens so, even in mid-text
            suffix=suffixes(np.append(0, before - BYTE0)),  # the sentinel has no text: 0
            targets=np.where(is_new, targets[here], NO_TARGET),
            # the closing sentinel's bits count, but it is no byte of text
            text_bytes=int((is_new & is_byte).sum()))
        scored_up_to = max(scored_up_to, start + len(targets[here]))
        start += stride


def view_window(view):
    """A whole View, with each symbol's successor as its target."""
    return Window(view.symbols[:-1], view.suffix[:-1], view.symbols[1:], view.text_bytes)


@torch.inference_mode()
def bits_per_byte(model, windows, device, batch_size=64):
    """Bits per byte of text, over all that the windows score."""
    windows = sorted(windows, key=lambda window: len(window.symbols))  # for little padding
    nats = 0.0
    for start in with_progress(range(0, len(windows), batch_size), "bits per byte"):
        batch = windows[start:start + batch_size]
        longest = len(batch[-1].symbols)
        symbols = torch.zeros(len(batch), longest, dtype=torch.long)
        suffix = torch.zeros_like(symbols)
        targets = torch.full_like(symbols, NO_TARGET)
        for row, window in enumerate(batch):
            n = len(window.symbols)
            symbols[row, :n] = torch.from_numpy(window.symbols)
            suffix[row, :n] = torch.from_numpy(window.suffix)
            targets[row, :n] = torch.from_numpy(window.targets)
        # a row has one text, and padding comes after it: plainly causal attention will do
        losses = model(symbols.to(device), targets.to(device), suffix.to(device))
        nats += losses.cpu().double().sum().item()  # MPS has no float64
    text_bytes = sum(window.text_bytes for window in windows)
    if text_bytes == 0:
        raise UserError("bits per byte: there is no held-out text to measure them on")
    return nats / math.log(2) / text_bytes


def held_out_samples(run_options, data, block_size, view, limit):
    """At most `limit` held-out samples that may be shown in `view`, a list of uint8 arrays.

    limit: 0 for SAMPLES.
    """
    mix = 0.0 if view == "raw" else 1.0
    # `prepare` checks what this mix needs, this view alone; without a proxy it fits none
    options = replace(run_options, data=data, proxy="none", mix=mix)
    if data != run_options.data:
        options.shard = "0/1"  # the run's shards are of its own corpus
    views, _, _ = prepare(options, block_size)
    not_shown = store.COMP_ONLY if view == "raw" else store.RAW_ONLY
    usable = np.flatnonzero(views.held_out & (views.allowed != not_shown))
    return [views.raw(i) for i in spread(usable, limit or SAMPLES)]


def held_out_documents(data, text_column, limit):
    """At most `limit` held-out documents that may be shown raw, a list of uint8 arrays."""
    texts = [document.text for document in store.open_corpus(data, text_column).documents()
             if document.text and document.held_out and document.view != "comp"]
    return [np.frombuffer(text, np.uint8) for text in spread(texts, limit or SAMPLES)]


def corpora_of(options, run_options):
    """The corpora whose bits per byte are asked for: those of --data, whose weights say nothing
    here, or the run's own as a whole. A list."""
    if not options.data:
        return [run_options.data]
    names, _ = parse_data(options.data)
    return names


def measure_bpb(model, run_options, options, proxy):
    """{"bpb": bits per byte of held-out samples}, or "bpb_comp" through the proxy.

    With --context of whole documents; with --data a number for each of those corpora.
    """
    results = {}
    block_size = model.config.block_size
    if options.context > block_size:
        raise UserError(f"--context={options.context}: expected at most {block_size}, as the model "
                        "was trained with")
    context = options.context or block_size
    stride = options.stride or max(1, context // 2)
    for data in corpora_of(options, run_options):
        if options.context:
            texts = held_out_documents(data, run_options.text_column, options.limit)
        else:
            texts = held_out_samples(run_options, data, block_size, options.view, options.limit)
        windows = []
        for text in texts:
            if options.view == "raw":
                windows += raw_windows(text, raw_sentinels(run_options.mode), context, stride)
            else:
                comp = proxy.encode(text.tobytes())
                view = format_view("comp", text, comp, proxy.symbol_lengths, run_options.mode)
                windows.append(view_window(view))
        name = "bpb" if options.view == "raw" else "bpb_comp"
        if options.data:
            name += f" {data}"
        results[name] = bits_per_byte(model, windows, options.device, options.batch_size)
    return results


def solution_in_symbols(prompt, solution, proxy, mode):
    """A Window of a problem, whose prompt and solution are bytes, as a proxy's symbols.

    Scoring starts at the first symbol that could be another one with another solution. So the bits
    of the prompt's end are counted with the solution's, but only the solution's bytes: an upper
    bound. It is not cut, even if it is longer than a context.
    """
    text = np.frombuffer(prompt + solution, np.uint8)
    comp = proxy.encode(prompt + solution)
    view = format_view("comp", text, comp, proxy.symbol_lengths, mode)
    given, _ = proxy.encode_prompt(prompt)  # what `comp` begins with, whatever the solution
    targets = view.symbols[1:].copy()
    targets[:len(given)] = NO_TARGET
    return Window(view.symbols[:-1], view.suffix[:-1], targets, len(solution))


def measure_solutions(model, run_options, problems, options, proxy):
    """{"bpb_solutions": bits per byte of the problems' solutions, each given its prompt}.

    Through the proxy it is "bpb_solutions_comp". The closing sentinel's bits count, as in
    `measure_bpb`. {} if no problem has a solution.
    """
    context = model.config.block_size
    windows = []
    for problem in problems.values():
        prompt = problem["prompt"].encode()
        solution = (problem.get("canonical_solution") or "").encode()
        if not solution:
            continue
        if options.view == "raw":
            text = np.frombuffer(prompt + solution, np.uint8)
            windows += raw_windows(text, raw_sentinels(run_options.mode), context, context // 2,
                                   prompt_bytes=len(prompt))
        else:
            windows.append(solution_in_symbols(prompt, solution, proxy, run_options.mode))
    if not windows:
        return {}
    name = "bpb_solutions" if options.view == "raw" else "bpb_solutions_comp"
    return {name: bits_per_byte(model, windows, options.device, options.batch_size)}


# -----------------------------------------------------------------------------
# who writes


def load_run_proxy(run, checkpoint_proxy=None):
    """The proxy of a run. Raises UserError if the file is missing, or is another proxy than the
    model was trained with."""
    path = Path(run or "") / "proxy.pt"
    if not path.exists():
        raise UserError(f"{run}: no proxy.pt in it, so the model can't read or write symbols")
    proxy = load_proxy(path, "restore the file")
    if checkpoint_proxy not in (None, proxy.id):
        raise UserError(f"{path} is proxy {proxy.id}, but the run was trained with "
                        f"{checkpoint_proxy}; restore the file, or the code that encodes")
    return proxy


def writer(model, run_options, options, proxy):
    """A function that completes prompts in the chosen view: write(prompts, n, stops, max_new=..,
    temperature=.., seed=..) returns, as `complete` does, n completions (bytes) of each.

    Raises UserError if the run can't do so.
    """
    if options.view == "raw":
        return functools.partial(complete, model, sentinels=raw_sentinels(run_options.mode))
    if proxy.symbol_lengths is None or run_options.mode == "vanilla":
        raise UserError("--view=comp: this run can't write through its proxy; expected one with "
                        "sentinels, and a proxy whose symbols stand for known bytes")
    return functools.partial(complete_in_symbols, model, proxy, proxy.symbol_bytes())


# -----------------------------------------------------------------------------
# pass@k


def complete_problems(write, prompts, n, options, temperature, keep_as=None):
    """{task_id: n completions, strings} of `prompts`, {task_id: prompt}.

    write: from `writer`. keep_as: a path; the completions of each distinct call are kept in a file
    `<keep_as>-<hash>.jsonl`. They are added as they are finished, and read when the same call is
    made again: after an interruption, or for another score. None keeps nothing.
    """
    about = [prompts, n, temperature, options.max_new, options.seed, options.view]
    completions = Completions(keep_as and Path(f"{keep_as}-{digest(about)}.jsonl"), n)
    has_def = all(re.search(r"^ *(async )?def ", prompt, re.M) for prompt in prompts.values())
    stops = STOPS if has_def else STOPS_WITHOUT_DEF
    by_length = sorted(prompts, key=lambda task_id: len(prompts[task_id]))  # for little padding
    at_once = max(1, ROWS_AT_ONCE // n)
    for start in with_progress(range(0, len(by_length), at_once), "completing"):
        batch = by_length[start:start + at_once]
        if all(task_id in completions.done for task_id in batch):
            continue
        texts = write([prompts[task_id].encode() for task_id in batch], n, stops,
                      max_new=options.max_new, temperature=temperature,
                      seed=options.seed + start)  # the same, whichever batches are on disk already
        for task_id, some_texts in zip(batch, texts):
            completions.add(task_id, [text.decode("utf-8", "replace") for text in some_texts])
    return completions.done


def pass_at_k(n, c, k):
    """The chance that any of k completions is right, drawn from n of which c are: 1 - C(n-c, k) /
    C(n, k) (Chen et al. 2021, eq. 1)."""
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
    scored = score(problems, samples, options.timeout, options.memory << 20)
    if options.save:
        lines = [json.dumps(row) + "\n" for row in scored]
        store.write_file(options.save, "".join(lines).encode())
    results = count_of_canonical_failures(scored) | pass_rates(scored, options.ks())
    return results, scored


def measure_pass(write, problems, options, keep_as):
    """pass@k of the problems, and pass@1 by the number of their operations. keep_as: see
    `complete_problems`."""
    prompts = {task_id: problem["prompt"] for task_id, problem in problems.items()}
    done = complete_problems(write, prompts, options.n, options, options.temperature, keep_as)
    samples = []
    for task_id in problems:
        samples += [{"task_id": task_id, "completion": text} for text in done[task_id]]
    results, scored = score_samples(problems, samples, options)
    return results | pass_by_operations(problems, scored)


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


def measure_samples_file(options):
    """What a file of somebody's completions is worth, a dict; stderr says how they failed."""
    problems = read_problems(options.problems or tinycode_file(TINYCODE, "problems.jsonl"))
    samples = read_samples(options.samples, problems)
    results = uneven_samples(problems, samples)
    rates, scored = score_samples(problems, samples, options)
    explain_failures(problems, scored)
    return results | rates


# -----------------------------------------------------------------------------
# robustness


def perturbed_solutions(write, problems, kind, seed, options, keep_as):
    """Rows to score, one for each problem: its prompt, perturbed unless `kind` is "greedy", with
    the greedy completion."""
    prompts, names = {}, {}
    for task_id, problem in problems.items():
        prompts[task_id], names[task_id] = problem["prompt"], problem["entry_point"]
        if kind != "greedy":
            prompts[task_id], _, names[task_id] = perturb(problem, kind, seed)
    done = complete_problems(write, prompts, 1, options, 0.0, keep_as)
    rows = []
    for task_id, problem in problems.items():
        # the tests call the function by its old name
        alias = f"\n{problem['entry_point']} = {names[task_id]}\n"
        solution = prompts[task_id] + done[task_id][0] + alias
        rows.append({"task_id": task_id, "kind": kind, "solution": solution})
    return rows


def measure_robustness(write, problems, options, keep_as):
    """Greedy pass@1 on the prompts as they are; for each kind of perturbation the share of problems
    that are solved under all of `options.perturbations` seeds, and the drop (ReCode's RP_s@1 and
    RD_s@1)."""
    rows = perturbed_solutions(write, problems, "greedy", 0, options, keep_as)
    for kind in PERTURBATIONS:
        for seed in range(options.perturbations):
            rows += perturbed_solutions(write, problems, kind, seed, options, keep_as)
    scored = score(problems, rows, options.timeout, options.memory << 20)
    results = count_of_canonical_failures(scored)

    solved = {kind: dict.fromkeys(problems, True) for kind in ("greedy", *PERTURBATIONS)}
    for row in scored:
        if not row["passed"]:
            solved[row["kind"]][row["task_id"]] = False
    results |= with_interval("greedy pass@1", list(solved["greedy"].values()))
    for kind in PERTURBATIONS:
        results |= with_interval(f"robust {kind}", list(solved[kind].values()))
    greedy = results["greedy pass@1"]
    if greedy > 0:  # a drop from 0 is undefined
        for kind in PERTURBATIONS:
            results[f"drop {kind}"] = 1 - results[f"robust {kind}"] / greedy
    return results


def measure_noise(model, run_options, options):
    """Bits per byte of the untouched bytes of held-out samples, some of whose bytes are
    replaced."""
    block_size = model.config.block_size
    sentinels = raw_sentinels(run_options.mode)
    texts = held_out_samples(run_options, run_options.data, block_size, "raw", options.limit)
    results = {}
    for noise in NOISE:
        rng = np.random.default_rng(0)
        windows = []
        for text in texts:
            windows += raw_windows(text, sentinels, block_size, block_size, noise, rng)
        name = f"bpb, {noise:.0%} noise"
        results[name] = bits_per_byte(model, windows, options.device, options.batch_size)
    return results


# -----------------------------------------------------------------------------
# translation, and facts


def views_that_fit(problems, proxy, room):
    """{task_id: {"raw": View, "comp": View}} of the problems that have a canonical solution, each
    with it, whose two views have at most `room` symbols together."""
    views = {}
    for task_id, problem in problems.items():
        if not problem.get("canonical_solution"):
            continue
        text = (problem["prompt"] + problem["canonical_solution"]).encode()
        raw = np.frombuffer(text, np.uint8)
        comp = proxy.encode(text)
        pair = {"raw": format_view("raw", raw),
                "comp": format_view("comp", raw, comp, proxy.symbol_lengths)}
        if len(pair["raw"].symbols) + len(pair["comp"].symbols) <= room:
            views[task_id] = pair
    return views


TRANSLATIONS_AT_ONCE = 64


def decode_or_empty(proxy, symbols):
    """The text of some symbols, bytes; b"" if they are none of the proxy's."""
    try:
        return proxy.decode(symbols)
    except Exception:  # a decompressor may raise anything
        return b""


def translate(model, proxy, views, given):
    """{task_id: text, bytes} that the model writes where it is given one view and asked for the
    other, as pairs stand in a training context. views: from `views_that_fit`.

        given "comp":    <comp> 17 9 </comp> <raw>    ->    d e f _ f </raw>
    """
    if given == "comp":
        opening, closing, first_id = RAW, END_RAW, BYTE0
        symbol_bytes = [bytes([byte]) for byte in range(256)]
        decode = bytes
    else:
        opening, closing, first_id = COMP, END_COMP, PROXY0
        symbol_bytes = proxy.symbol_bytes()
        decode = functools.partial(decode_or_empty, proxy)
    texts = {}
    task_ids = list(views)
    for start in with_progress(range(0, len(task_ids), TRANSLATIONS_AT_ONCE), "translating"):
        batch = task_ids[start:start + TRANSLATIONS_AT_ONCE]
        prompts = []
        for task_id in batch:
            view = views[task_id][given]
            prompts.append((np.append(view.symbols, opening), np.append(view.suffix, 0)))
        written = continue_views(model, prompts, first_id, closing, symbol_bytes)
        for task_id, symbols in zip(batch, written):
            texts[task_id] = decode(symbols)
    return texts


def measure_translation(model, proxy, problems, options):
    """Oracle translation (the paper's): prompt and canonical solution are given in one view, and
    the model writes the other. Shares of the problems that come out exactly, and that pass their
    tests; those too long for a context, or without a solution, are left out."""
    views = views_that_fit(problems, proxy, model.config.block_size)
    results = {"translated problems": len(views)}
    if not views:
        return results
    for given, wanted in (("comp", "raw"), ("raw", "comp")):
        exact, rows = [], []
        for task_id, text in translate(model, proxy, views, given).items():
            problem = problems[task_id]
            right = (problem["prompt"] + problem["canonical_solution"]).encode()
            exact.append(text == right)
            rows.append({"task_id": task_id, "solution": text.decode("utf-8", "replace")})
        scored = score(problems, rows, options.timeout, options.memory << 20)
        results |= count_of_canonical_failures(scored)
        results |= with_interval(f"{given} to {wanted}, exact", exact)
        results |= with_interval(f"{given} to {wanted}, pass@1", [row["passed"] for row in scored])
    return results


def recall_facts(write, path):
    """The share of facts that greedy decoding gives back from their prompts: "facts_any", of those
    that may be seen raw, "facts_comp", of those that are only seen compressed, where there are
    such; and "facts_chance", what guessing would give."""
    facts = [row for _, row in read_jsonl(path)]
    recalled = {"any": [], "comp": []}
    for start in with_progress(range(0, len(facts), ROWS_AT_ONCE), "recalling"):
        batch = facts[start:start + ROWS_AT_ONCE]
        prompts = [fact["prompt"].encode() for fact in batch]
        completions = write(prompts, stops=(b"\n",), max_new=24, temperature=0)
        for fact, (text,) in zip(batch, completions):
            recalled[fact["view"]].append(text.strip() == f"return {fact['answer']}".encode())
    results = {}
    for view, right in recalled.items():
        if right:
            results |= with_interval(f"facts_{view}", right)
    return results | {"facts_chance": CHANCE_OF_A_FACT}


# -----------------------------------------------------------------------------
# a run and its tasks


def measure(task, model, run_options, options, problems, proxy, keep_as):
    """The results of one task: {name: number}, with name_95, an interval, beside shares of
    problems.

    run_options: the MixOptions that the model was trained with. problems: by task_id, for the tasks
    that have some. proxy: the run's, for the tasks that need it. keep_as: see `complete_problems`.
    """
    if task == "bpb":
        return measure_bpb(model, run_options, options, proxy)
    if task == "translate":
        return measure_translation(model, proxy, problems, options)
    write = writer(model, run_options, options, proxy)
    if task == "pass":
        results = measure_pass(write, problems, options, keep_as)
        return results | measure_solutions(model, run_options, problems, options, proxy)
    if task == "robust":
        results = measure_robustness(write, problems, options, keep_as)
        if options.view == "raw":
            results |= measure_noise(model, run_options, options)
        return results
    if task == "facts":
        return recall_facts(write, tinycode_folder(run_options.data) / "facts.jsonl")
    raise ValueError(f"nothing measures the task {task!r}: expected a branch for it here")


def choose_problems(options, tinycode):
    """(at most --limit problems of a file, a dict by task_id, and how many it has)."""
    problems = read_problems(options.problems
                             or tinycode_file(tinycode or TINYCODE, "problems.jsonl"))
    task_ids = spread(list(problems), options.limit or len(problems))
    return {task_id: problems[task_id] for task_id in task_ids}, len(problems)


def other_content(task, options, run_options, tinycode):
    """What a task reads besides model and problems: facts, and the ids of corpora, a list."""
    if task == "facts":
        return list(read_jsonl(tinycode_file(tinycode, "facts.jsonl")))
    if task not in ("bpb", "robust"):
        return []
    corpora = corpora_of(options, run_options) if task == "bpb" else [run_options.data]
    return [store.open_corpus(data, run_options.text_column).id for data in corpora]


def proxy_for(task, run, run_options, options, checkpoint):
    """The run's proxy where the task needs one, else None. Raises UserError if it is not there."""
    if options.view == "raw" and task != "translate":
        return None
    return load_run_proxy(run, checkpoint.get("made_from", {}).get("proxy"))


def what_is_missing(task, run_options, tinycode):
    """Why a task can't be done of a run, or None."""
    if task == "facts" and not tinycode:
        return f"--data={run_options.data} has none"
    if task == "translate" and (run_options.proxy == "none" or run_options.mode == "vanilla"):
        return "it needs a proxy, and sentinels to ask for its view"
    return None


def reads_own_corpus(task, options):
    """Whether a task reads what is held out of the run's own corpus."""
    if task == "bpb":
        return not options.data
    return task in ("robust", "facts") or not options.problems


def warn_of_another_corpus(run, run_options, checkpoint):
    """Say so where --data is not what the run was trained on: what is held out today, and problems
    that are new today, may have been in its training."""
    # the ids of its parts, in one string; train.py itself, which calls this too, has none
    trained_on = checkpoint.get("made_from", {}).get("corpus")
    if not trained_on:
        return
    try:
        corpus = store.open_corpus(run_options.data, run_options.text_column)
    except UserError:  # it is gone; what needs it will say so
        return
    if not all(source.id in trained_on for source in corpus.sources):
        print(f"{run}: --data={run_options.data}, or the code that reads it, has changed since its "
              "training, so what is held out now may have been trained on", file=sys.stderr)


def default_tasks(tinycode):
    return ["bpb", "pass", "facts"] if tinycode and can_score() else ["bpb"]


def evaluate(model, checkpoint, options, tasks=None, run=None, results=None, keep=True):
    """The results of the tasks for a model: numbers, intervals, and of how many problems.

    results: the dict to fill; if this is interrupted, it has what was done. keep: whether a run's
    results and completions are kept in its folder, where the next call finds them.
    """
    options.resolve()
    results = {} if results is None else results
    run_options = mix_options(run or "", checkpoint)
    tinycode = tinycode_folder(run_options.data)
    kept = Kept(run if keep else None, code_hash(*MEASURING))
    if options.again:
        kept.forget_completions()
    tasks = tasks or default_tasks(tinycode)
    if any(reads_own_corpus(task, options) for task in tasks):
        warn_of_another_corpus(run, run_options, checkpoint)
    for task in tasks:
        missing = what_is_missing(task, run_options, tinycode)
        if missing:
            print(f"{task} left out: {missing}", file=sys.stderr)
            continue
        problems = None
        if task in ("pass", "robust", "translate"):
            problems, n_problems = choose_problems(options, tinycode)
        settings = {name: getattr(options, name) for name in TASKS[task]}
        content = [problems, other_content(task, options, run_options, tinycode)]
        key = kept.key(task, settings, content)
        # --save needs the verdicts, which are not kept
        rerun = options.again or (task == "pass" and options.save)
        found = None if rerun else kept.results.get(key)
        if found is None:
            proxy = proxy_for(task, run, run_options, options, checkpoint)
            found = measure(task, model, run_options, options, problems, proxy, kept.completions)
            kept.results.put(key, task, settings, options.problems, found)
        if problems is not None and len(problems) < n_problems:
            results["problems"] = f"{len(problems)} of {n_problems}"
        results |= found
    return results


def measure_runs(options, table, trained_with):
    """Fill two dicts by run: `table` with its results, `trained_with` with its options.

    With --all a run that can't be measured is left out, and a line on stderr says why.
    """
    runs = all_runs() if options.all else options.runs or [newest_run()]
    for run in map(str, runs):
        try:
            model, checkpoint = load_model(run, options.device)
            trained_with[run] = checkpoint["options"]
            table[run] = {}
            evaluate(model, checkpoint, options, options.tasks(), run, table[run])
        except UserError as error:
            if not options.all:
                raise
            table.pop(run, None)
            trained_with.pop(run, None)
            print(f"{run} left out: {error}", file=sys.stderr)
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
        # with --again it would start again, and of --samples nothing is kept
        starts_again = options.again or options.samples
        how_to_go_on = "" if starts_again else ", the same command goes on from here"
        print(f"interrupted; what is done is below{how_to_go_on}", file=sys.stderr)
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
