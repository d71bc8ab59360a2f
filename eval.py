"""
How good is a run, on raw bytes? Generation, scoring, metrics, in that order.

- bpb:   bits per byte of held-out samples, the end of the sample included. --view=comp reads them through the proxy
         instead, still in bits per byte of text: the tokenizer baseline.
- pass:  pass@k of raw-byte completions, by running them on a problem file's tests (Chen et al. 2021, arXiv 2107.03374).
         Problems in HumanEval's format, or in HumanEval+'s (Liu et al. 2023, arXiv 2305.01210).
- facts: how many of tinycode's facts come back from a raw prompt: those seen raw too, and those seen compressed only.

    python eval.py                                       the newest run under out/, all three
    python eval.py out/neural out/none --task=bpb,pass
    python eval.py --samples=samples.jsonl --problems=HumanEval.jsonl.gz       scores a file; needs no run
"""
import inspect
import json
import math
import os
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from mix import HERE, Mixer, MixOptions, prepare, read_jsonl
from model import UserError, command_line, expect, expect_device, flag, nearest
from sample import complete, load_model, newest_run, sentinels_of

TINYCODE = HERE / "data" / "tinycode"
# What ends a function: the stop sequences of the HumanEval paper, and decorators.
STOPS = (b"\nclass", b"\ndef", b"\n#", b"\nif", b"\nprint", b"\n@")
ROWS_AT_ONCE = 256

# -----------------------------------------------------------------------------
# generation


def read_problems(path):
    """Problems by task_id; tinycode's where `path` is empty. Raises UserError for a file that is
    in neither HumanEval's nor HumanEval+'s format."""
    path, problems = path or TINYCODE / "problems.jsonl", {}
    for number, row in read_jsonl(path):
        missing = {"task_id", "prompt", "entry_point"} - row.keys()
        missing |= {"canonical_solution"} - row.keys() if "base_input" in row else {"test"} - row.keys()
        if missing:
            raise UserError(f"{path}, line {number}: expected a problem, but it has no {', '.join(sorted(missing))}")
        problems[row["task_id"]] = row
    if not problems:
        raise UserError(f"{path}: no problems in it")
    return problems


def complete_problems(model, problems, sentinels, options):
    """Completions of every problem as rows {task_id, completion}, `options.n` of each."""
    ids = sorted(problems, key=lambda task_id: len(problems[task_id]["prompt"]))
    rows, at_once = [], max(1, ROWS_AT_ONCE // options.n)
    for start in tqdm(range(0, len(ids), at_once), desc="completing", leave=False):
        chosen = ids[start:start + at_once]
        texts = complete(model, [problems[i]["prompt"].encode() for i in chosen], options.n, STOPS,
                         max_new=options.max_new, temperature=options.temperature, seed=options.seed + start,
                         sentinels=sentinels)
        rows += [{"task_id": i, "completion": text.decode("utf-8", "replace")}
                 for i, completions in zip(chosen, texts) for text in completions]
    return rows

# -----------------------------------------------------------------------------
# scoring


def judge():
    """A judge: reads a problem and its completions as JSON from each line of stdin, writes a verdict for each.

    It runs in an interpreter of its own that has loaded nothing (its source is passed to `python -I -c`), so a fork is
    cheap. Each completion gets a forked child with limits, in an empty folder; the whole process group is killed in
    the end. The child proves a pass by writing a secret, which the judge draws anew for each: printing or exiting is
    not enough.
    """
    import contextlib
    import copy
    import json
    import os
    import resource
    import secrets
    import select
    import shutil
    import signal
    import sys
    import tempfile
    import time

    def close_enough(out, expected, atol):
        """numpy.allclose with rtol=1e-7 for numbers, lists and tuples, however nested."""
        if isinstance(expected, (list, tuple)):
            return len(out) == len(expected) and all(close_enough(a, b, atol) for a, b in zip(out, expected))
        return out == expected or abs(out - expected) <= atol + 1e-7 * abs(expected)

    def check_inputs(function, problem, inputs, expected):
        """Raises AssertionError unless `function` gives what is expected, as evalplus 0.3.1 judges it."""
        for arguments, want in zip(inputs, expected):
            out, atol = function(*copy.deepcopy(arguments)), problem.get("atol", 0)
            if problem["entry_point"] == "find_zero":  # HumanEval/32 has many right answers: a root is one
                assert abs(sum(c * out ** i for i, c in enumerate(arguments[0]))) <= atol
                continue
            floats = isinstance(want, float) or (isinstance(want, (list, tuple)) and len(want) > 0
                                                 and all(isinstance(w, float) for w in want))
            if atol == 0 and floats:
                atol = 1e-6
            if not out == want:
                assert atol and type(out) is type(want) and close_enough(out, want, atol)

    def expected_outputs(problem):
        scope = {}
        exec(problem["prompt"] + problem["canonical_solution"], scope)
        solve = scope[problem["entry_point"]]
        return [[solve(*copy.deepcopy(arguments)) for arguments in problem[kind]] for kind in ("base_input", "plus_input")]

    def run(problem, completion, expected, tell):
        """In the child. `tell` reports how far it came: a byte for the base tests, another for all of them."""
        scope = {"__name__": "completion"}
        exec(compile(problem["prompt"] + completion, "completion", "exec"), scope)
        if expected:
            for kind, outputs in zip(("base_input", "plus_input"), expected):
                check_inputs(scope[problem["entry_point"]], problem, problem[kind], outputs)
                tell()
        else:
            exec(problem["test"], scope)
            scope["check"](scope[problem["entry_point"]])
            tell(), tell()

    def verdict(problem, completion, expected, limit, memory):
        secret, folder = secrets.token_bytes(16), tempfile.mkdtemp()
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            message = b"error"
            try:
                os.setsid()
                os.chdir(folder)
                null = os.open(os.devnull, os.O_RDWR)
                for descriptor in range(3):
                    os.dup2(null, descriptor)
                os.environ.clear()
                for what, bound in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, int(limit) + 2),
                                    (resource.RLIMIT_FSIZE, 2 ** 24), (resource.RLIMIT_CORE, 0)):
                    with contextlib.suppress(ValueError, OSError):  # macOS knows no limit on the address space
                        resource.setrlimit(what, (bound, bound))
                run(problem, completion, expected, lambda: os.write(write_end, secret))
            except AssertionError:
                message = b"wrong answer"
            except BaseException as error:
                message = type(error).__name__.encode()
            os.write(write_end, message)
            os._exit(0)
        os.close(write_end)
        said, deadline = b"", time.monotonic() + limit
        while True:
            ready, _, _ = select.select([read_end], [], [], max(0, deadline - time.monotonic()))
            part = os.read(read_end, 4096) if ready else b""
            said += part
            if not part:
                break
        try:
            os.killpg(child, signal.SIGKILL)
        except ProcessLookupError:
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read_end)
        shutil.rmtree(folder, ignore_errors=True)
        passed = said.count(secret)
        if passed == 2:
            return "passed"
        reason = said.split(secret)[-1].decode("utf-8", "replace") if ready else "timed out"
        return f"passed base, then {reason}" if passed else reason or "exited"

    for line in sys.stdin:
        job = json.loads(line)
        problem, expected, started = job["problem"], None, time.monotonic()
        try:
            if "base_input" in problem:
                expected = expected_outputs(problem)
            limit = max(job["timeout"], 4 * (time.monotonic() - started))
            verdicts = [verdict(problem, completion, expected, limit, job["memory"]) for completion in job["completions"]]
        except Exception as error:
            verdicts = [f"canonical solution failed: {type(error).__name__}"] * len(job["completions"])
        print(json.dumps(verdicts), flush=True)


def score(problems, samples, timeout=3.0, memory=1 << 30):
    """Run the `samples`, rows {task_id, completion}. Returns rows {task_id, completion, result, passed, base_passed}.

    A problem's samples go to a judge together; one that a completion killed is replaced. timeout: seconds a completion;
    memory: bytes. Raises UserError for a sample of no problem.
    """
    by_task = defaultdict(list)
    for number, sample in enumerate(samples, 1):
        if not isinstance(sample.get("completion"), str) or sample.get("task_id") not in problems:
            raise UserError(f"sample {number}: expected a string `completion` and the `task_id` of a problem in the file, "
                            f"found task_id {sample.get('task_id')!r}")
        by_task[sample["task_id"]].append(sample["completion"])
    source = inspect.getsource(judge) + "\njudge()"
    jobs, results = list(by_task.items()), {}

    def start_judge():
        return subprocess.Popen([sys.executable, "-I", "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                text=True)

    def work(my_jobs):
        process = start_judge()
        for task_id, completions in my_jobs:
            job = {"problem": problems[task_id], "completions": completions, "timeout": timeout, "memory": memory}
            try:
                process.stdin.write(json.dumps(job) + "\n")
                process.stdin.flush()
                results[task_id] = json.loads(process.stdout.readline())
            except (OSError, ValueError):
                results[task_id] = ["judge died"] * len(completions)
                process.kill()
                process = start_judge()
            progress.update(len(completions))
        process.communicate()

    workers = min(os.cpu_count(), max(1, len(jobs)))
    with tqdm(total=len(samples), desc="running tests", leave=False) as progress, ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, [jobs[i::workers] for i in range(workers)]))
    return [{"task_id": task_id, "completion": completion, "result": result, "passed": result == "passed",
             "base_passed": result.startswith("passed")}
            for task_id, completions in jobs for completion, result in zip(completions, results[task_id])]

# -----------------------------------------------------------------------------
# metrics


def pass_at_k(n, c, k):
    """The chance that of k completions, drawn from n of which c are right, one is right: 1 - C(n-c, k) / C(n, k)
    (Chen et al. 2021, eq. 1)."""
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def mean_pass_at_k(scored, k, key="passed"):
    """Mean of pass@k over the problems; None where one has fewer than k completions."""
    counts = defaultdict(list)
    for row in scored:
        counts[row["task_id"]].append(row[key])
    if not counts or min(map(len, counts.values())) < k:
        return None
    return float(np.mean([pass_at_k(len(right), sum(right), k) for right in counts.values()]))


@torch.inference_mode()
def bits_per_byte(model, mixer, view, limit, device):
    """Bits per byte of text of up to `limit` held-out samples, each alone behind its opening sentinel, closing one
    included. view: "raw", or "comp" through the proxy."""
    chosen = mixer.pools[view]
    chosen = chosen[np.linspace(0, len(chosen) - 1, min(limit, len(chosen))).astype(int)]
    shown = sorted((mixer.shown(i, view) for i in chosen), key=lambda sample: len(sample[0]))
    nats = text_bytes = 0.0
    for start in tqdm(range(0, len(shown), 64), desc=f"{view} bits per byte", leave=False):
        batch = shown[start:start + 64]
        symbols = torch.zeros(len(batch), max(len(s) for s, _, _ in batch), dtype=torch.long)
        targets, tails = torch.full_like(symbols, -100), torch.zeros_like(symbols)
        for row, (s, t, length) in enumerate(batch):
            symbols[row, :len(s)], tails[row, :len(s)] = torch.from_numpy(s), torch.from_numpy(t)
            targets[row, :len(s) - 1] = torch.from_numpy(s[1:])
            text_bytes += length
        nats += model(symbols.to(device), targets.to(device), tail=tails.to(device)).double().sum().item()
    return nats / math.log(2) / max(1, text_bytes)


def recall_facts(model, path, sentinels):
    """{"facts_raw": share of the facts seen raw, "facts_comp": of those seen compressed only} that greedy decoding
    gives back from their raw prompts. Chance is 1 in 9,000."""
    rows = [row for _, row in read_jsonl(path)]
    right = {"any": [], "comp": []}
    for start in tqdm(range(0, len(rows), ROWS_AT_ONCE), desc="recalling facts", leave=False):
        batch = rows[start:start + ROWS_AT_ONCE]
        texts = complete(model, [row["prompt"].encode() for row in batch], stops=(b"\n",), max_new=24, temperature=0,
                         sentinels=sentinels)
        for row, (text,) in zip(batch, texts):
            right[row["view"]].append(text.strip() == f"return {row['answer']}".encode())
    return {"facts_raw": float(np.mean(right["any"] or [0])), "facts_comp": float(np.mean(right["comp"] or [0]))}


TASKS = ("bpb", "pass", "facts")


@dataclass
class EvalOptions:
    runs: tuple = flag((), "folders of runs [the newest under out/]", positional=True, nargs="*")
    task: str = flag("", "what to measure: bpb, pass, facts, with commas [what the run's corpus has]")
    view: str = flag("raw", "bpb: raw bytes, or through the proxy", choices=("raw", "comp"))
    limit: int = flag(1000, "bpb: held-out samples at most")
    problems: str = flag("", "pass: a file in HumanEval's or HumanEval+'s format [tinycode's problems]")
    n: int = flag(10, "pass: completions of each problem")
    k: str = flag("1,10", "pass: the k of pass@k")
    temperature: float = flag(0.2, "pass: of the sampling; 0 is greedy")
    max_new: int = flag(256, "pass: bytes of a completion at most")
    timeout: float = flag(3.0, "pass: seconds for a completion's tests")
    memory: int = flag(1024, "pass: megabytes for a completion's tests")
    seed: int = flag(0, "pass: of the sampling")
    samples: str = flag(None, "pass: score the completions in this file, JSON lines {task_id, completion}; needs no run")
    save: str = flag(None, "pass: write the completions and verdicts to this file, in the same form")
    json: bool = flag(False, "print the results as one line of JSON, last")
    device: str = flag("cpu", "cpu or cuda")


def parse_ks(options):
    try:
        ks = [int(k) for k in options.k.split(",")]
        assert min(ks) > 0
        return ks
    except (ValueError, AssertionError):
        raise UserError(f"--k={options.k}: expected positive numbers with commas between, such as 1,10") from None


def score_samples(problems, samples, options):
    """pass@k of the samples as a dict; HumanEval+'s base tests apart."""
    scored = score(problems, samples, options.timeout, options.memory << 20)
    if options.save:
        try:
            with open(f"{options.save}.tmp", "w") as f:
                f.writelines(json.dumps(row) + "\n" for row in scored)
            os.replace(f"{options.save}.tmp", options.save)
        except OSError as error:
            raise UserError(f"--save={options.save}: {error.strerror}; expected a file that can be written") from None
    results = {f"pass@{k}": mean_pass_at_k(scored, k) for k in parse_ks(options)}
    if any("base_input" in problem for problem in problems.values()):
        results |= {f"base_pass@{k}": mean_pass_at_k(scored, k, "base_passed") for k in parse_ks(options)}
    return {key: value for key, value in results.items() if value is not None}


def evaluate(model, checkpoint, options, tasks=None):
    """The chosen tasks' results for a model: a dict of numbers, keys such as bpb, pass@1, facts_comp."""
    trained, results = MixOptions(**{f: checkpoint["options"][f] for f in MixOptions.__dataclass_fields__}), {}
    tasks = tasks or [task for task in TASKS if trained.data == "tinycode" or task == "bpb"]
    if "bpb" in tasks:
        if options.view == "raw":
            trained.proxy = "none"  # the raw side needs no proxy
        views, _, _ = prepare(trained, model.config.block_size)
        trained.mix = {"raw": 0.0, "comp": 1.0}[options.view]
        mixer = Mixer(views, trained, model.config.block_size, 1, val=True)
        key = "bpb" if options.view == "raw" else "bpb_comp"
        results[key] = bits_per_byte(model, mixer, options.view, options.limit, options.device)
    if "pass" in tasks:
        problems = read_problems(options.problems)
        samples = complete_problems(model, problems, sentinels_of(checkpoint), options)
        results |= score_samples(problems, samples, options)
    if "facts" in tasks:
        results |= recall_facts(model, TINYCODE / "facts.jsonl", sentinels_of(checkpoint))
    return results


def main(options):
    parse_ks(options)
    tasks = [task for task in options.task.split(",") if task]
    for task in tasks:
        if task not in TASKS:
            raise UserError(f"--task={task}: expected some of {','.join(TASKS)}{nearest(task, TASKS)}")
    expect(options, "above 0", "limit", "n", "max_new", "timeout", "memory")
    expect(options, "of 0 or more", "temperature", "seed")
    expect_device(options.device)
    table = {}
    if options.samples:
        samples = [row for _, row in read_jsonl(options.samples)]
        table[options.samples] = score_samples(read_problems(options.problems), samples, options)
    for run in [] if options.samples else options.runs or [newest_run()]:
        model, checkpoint = load_model(run, options.device)
        table[str(run)] = evaluate(model, checkpoint, options, tasks)
    columns = list(dict.fromkeys(key for results in table.values() for key in results))
    width = max(map(len, table))
    print(f"{'':{width}}  " + "  ".join(f"{column:>10}" for column in columns))
    for run, results in table.items():
        print(f"{run:{width}}  " + "  ".join(f"{results[c]:10.4f}" if c in results else " " * 10 for c in columns))
    if options.json:
        print(json.dumps(next(iter(table.values())) if len(table) == 1 else table))


if __name__ == "__main__":
    command_line(main, EvalOptions, description="Measures runs on raw bytes.")
