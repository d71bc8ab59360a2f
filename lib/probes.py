"""
The paper's other measurements of a run: robustness to perturbed prompts, translation between the
views, and recall of facts. And what they share with eval.py's pass@k: which problems, what ends a
completion, and intervals.

A probe is a function (run, options) -> {name: number}: a Run of sample.py and the EvalOptions of
eval.py come in, so no lesson file is imported here.
"""
import re

import numpy as np

from lib.data import read_jsonl
from lib.options import UserError, warn_once
from lib.perturb import PERTURBATIONS, perturb
from lib.judge import counts_to_know, read_problems, score
from lib.tables import with_progress
from lib.views import tinycode_file

# What ends a function: HumanEval's stop sequences, and decorators. Where a file has prompts without
# a `def`, as MBPP's, the function is still to come, and evalplus's stop sequences are used.
STOPS = (b"\nclass", b"\ndef", b"\n#", b"\nif", b"\nprint", b"\n@")
STOPS_WITHOUT_DEF = (b'\n"""', b"\nassert", b"\nif __name__", b"\nprint(", b"\ndef main(")
TRANSLATIONS_AT_ONCE = 64
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
# problems, and what a run writes for them


def choose_problems(run, options):
    """(problems by task_id, {} or {"problems": "3 of 9"}): at most --limit of those in the file.

    Raises UserError for a file that has none.
    """
    problems = read_problems(options.problems
                             or tinycode_file(run.options.data, "problems.jsonl")
                             or tinycode_file("tinycode", "problems.jsonl"))
    if not 0 < options.limit < len(problems):
        return problems, {}
    chosen = spread(list(problems), options.limit)
    said = {"problems": f"{len(chosen)} of {len(problems)}"}
    return {task_id: problems[task_id] for task_id in chosen}, said


def complete_problems(run, prompts, n, options, temperature):
    """{task_id: n completions, strings} of `prompts`, {task_id: prompt}."""
    has_def = all(re.search(r"^ *(async )?def ", prompt, re.M) for prompt in prompts.values())
    stops = STOPS if has_def else STOPS_WITHOUT_DEF
    encoded = [prompt.encode() for prompt in prompts.values()]
    completions = run.complete(encoded, n, stops, options.view, seed=options.seed,
                               max_new=options.max_new, temperature=temperature)
    written = {}
    for task_id, texts in zip(prompts, completions):
        written[task_id] = [text.decode("utf-8", "replace") for text in texts]
    return written


def score_rows(problems, rows, options):
    """(the rows {task_id, completion or solution} with their verdicts, what to know of these).

    On a machine that can't confine completions a run's own are run all the same; those of --samples
    need --unconfined.
    """
    unconfined = options.unconfined or not options.samples
    scored = score(problems, rows, options.timeout, unconfined=unconfined)
    return scored, counts_to_know(scored)


# -----------------------------------------------------------------------------
# robustness: does it solve a problem that is put a little differently?


def perturbed_solutions(run, problems, kind, seed, options):
    """(rows to score, how many prompts are as they were): of each problem its perturbed prompt with
    the greedy completion. kind: None for the prompts as they are."""
    prompts, names = {}, {}
    for task_id, problem in problems.items():
        prompts[task_id], names[task_id] = problem["prompt"], problem["entry_point"]
        if kind:
            prompts[task_id], _, names[task_id] = perturb(problem, kind, seed)
    completions = complete_problems(run, prompts, 1, options, temperature=0.0)
    rows, unchanged = [], 0
    for task_id, problem in problems.items():
        unchanged += prompts[task_id] == problem["prompt"]
        # the tests call the function by its old name
        alias = f"\n{problem['entry_point']} = {names[task_id]}\n"
        solution = prompts[task_id] + completions[task_id][0] + alias
        rows.append({"task_id": task_id, "kind": kind, "solution": solution})
    return rows, unchanged


def robustness(run, options):
    """Greedy pass@1 on the prompts as they are; for each kind of perturbation the share of problems
    that are solved under all of `options.perturbations` seeds, and the drop (ReCode's RP_s@1 and
    RD_s@1). Where a kind leaves prompts as they were it says how many, and has no number where it
    changes none.
    """
    problems, results = choose_problems(run, options)
    rows, _ = perturbed_solutions(run, problems, None, 0, options)
    kinds = []
    for kind in PERTURBATIONS:
        of_kind, unchanged = [], 0
        for seed in range(options.perturbations):
            some_rows, some_unchanged = perturbed_solutions(run, problems, kind, seed, options)
            of_kind += some_rows
            unchanged += some_unchanged
        if unchanged:
            results[f"not changed by {kind}"] = f"{unchanged} of {len(of_kind)}"
        if unchanged < len(of_kind):
            kinds.append(kind)
            rows += of_kind

    scored, notes = score_rows(problems, rows, options)
    results |= notes
    solved = {kind: dict.fromkeys(problems, True) for kind in (None, *kinds)}
    for row in scored:
        if not row["passed"]:
            solved[row["kind"]][row["task_id"]] = False
    results |= with_interval("greedy pass@1", list(solved[None].values()))
    greedy = results["greedy pass@1"]
    for kind in kinds:
        results |= with_interval(f"robust {kind}", list(solved[kind].values()))
        if greedy > 0:  # a drop from 0 is undefined
            results[f"drop {kind}"] = 1 - results[f"robust {kind}"] / greedy
    return results


# -----------------------------------------------------------------------------
# translation: does it know that both views say the same?


def views_that_fit(run, problems):
    """{task_id: {"raw": View, "comp": View}} of the problems that have a canonical solution, each
    with it, whose two views fit in a context together."""
    views = {}
    for task_id, problem in problems.items():
        if problem.get("canonical_solution"):
            text = (problem["prompt"] + problem["canonical_solution"]).encode()
            pair = {view: run.view(view, text) for view in ("raw", "comp")}
            n_symbols = sum(len(view.symbols) for view in pair.values())
            if n_symbols <= run.model.config.block_size:
                views[task_id] = pair
    return views


def decoded(run, view, symbols):
    """The text of the symbols of a view, bytes; b"" if they are none of the proxy's."""
    if view == "raw":
        return bytes(symbols)
    try:
        return run.proxy.decode(symbols)
    except Exception:  # a decompressor may raise anything
        return b""


def translate(run, views, given, wanted):
    """{task_id: text, bytes} that the model writes where it is `given` one view and asked for the
    other, as pairs stand in a training context. views: from `views_that_fit`.

        given "comp":    <comp> 17 9 </comp> <raw>    ->    d e f _ f </raw>
    """
    opening, _ = run.sentinels(wanted)
    block_size = run.model.config.block_size
    texts = {}
    task_ids = list(views)
    for start in with_progress(range(0, len(task_ids), TRANSLATIONS_AT_ONCE), "translating"):
        batch = task_ids[start:start + TRANSLATIONS_AT_ONCE]
        prompts = []
        for task_id in batch:
            view = views[task_id][given]
            prompts.append((np.append(view.symbols, opening), np.append(view.suffix, 0)))
        for task_id, symbols in zip(batch, run.continue_view(prompts, wanted, block_size)):
            texts[task_id] = decoded(run, wanted, symbols)
    return texts


def translation(run, options):
    """Oracle translation (the paper's): prompt and canonical solution are given in one view, and
    the model writes the other. Shares of the problems that come out exactly, and that pass their
    tests; those too long for a context, or without a solution, are left out."""
    if run.options.proxy == "none" or run.options.mode == "vanilla":
        warn_once("translate left out: it needs a proxy, and sentinels to ask for its view")
        return {}
    problems, results = choose_problems(run, options)
    views = views_that_fit(run, problems)
    results["translated problems"] = len(views)
    if not views:
        return results
    for given, wanted in (("comp", "raw"), ("raw", "comp")):
        exact, rows = [], []
        for task_id, text in translate(run, views, given, wanted).items():
            problem = problems[task_id]
            right = (problem["prompt"] + problem["canonical_solution"]).encode()
            exact.append(text == right)
            rows.append({"task_id": task_id, "solution": text.decode("utf-8", "replace")})
        scored, notes = score_rows(problems, rows, options)
        results |= notes
        results |= with_interval(f"{given} to {wanted}, exact", exact)
        results |= with_interval(f"{given} to {wanted}, pass@1", [row["passed"] for row in scored])
    return results


# -----------------------------------------------------------------------------
# facts: does what was only seen in one view come back in the other?


def recall_facts(run, options):
    """The share of tinycode's facts that greedy decoding gives back from their prompts:
    "facts_any", of those that may be seen raw, "facts_comp", of those that are only seen
    compressed, where there are such; and "facts_chance", what guessing would give."""
    path = tinycode_file(run.options.data, "facts.jsonl")
    if not path:
        warn_once(f"facts left out: --data={run.options.data} has none")
        return {}
    facts = []
    for number, row in read_jsonl(path):
        if not {"prompt", "answer"} <= row.keys() or row.get("view") not in ("any", "comp"):
            raise UserError(f"{path}, line {number}: expected `prompt`, `answer`, and a `view`, "
                            "any or comp")
        facts.append(row)
    prompts = [fact["prompt"].encode() for fact in facts]
    completions = run.complete(prompts, stops=(b"\n",), view=options.view, max_new=24,
                               temperature=0)
    recalled = {"any": [], "comp": []}
    for fact, (text,) in zip(facts, completions):
        recalled[fact["view"]].append(text.strip() == f"return {fact['answer']}".encode())
    results = {}
    for view, right in recalled.items():
        if right:
            results |= with_interval(f"facts_{view}", right)
    return results | {"facts_chance": CHANCE_OF_A_FACT}


TASKS = {"robust": robustness, "translate": translation, "facts": recall_facts}
