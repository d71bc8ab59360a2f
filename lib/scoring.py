"""
Scoring: which completions pass their problem's tests, by judges that this file starts.

eval.py calls `score`; the judges are lib/judge.py, and what keeps completions from doing harm is in
lib/sandbox.py.
"""
import functools
import gzip
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from lib import store
from lib.rows import read_jsonl
from lib.options import UserError

# Tests put other programs in its place.
JUDGE = Path(__file__).resolve().parent / "judge.py"

# -----------------------------------------------------------------------------
# problems

FIELDS = {"task_id", "prompt", "entry_point"}
FIELDS_WITH_CHECK = FIELDS | {"test"}  # HumanEval
FIELDS_WITH_INPUTS = FIELDS | {"canonical_solution", "plus_input", "atol"}  # HumanEval+, MBPP+


def read_problems(path):
    """The problems of a .jsonl[.gz] file, a dict by task_id.

    Formats: HumanEval's (Chen et al. 2021, arXiv 2107.03374), and that of HumanEval+ and MBPP+ (Liu
    et al. 2023, arXiv 2305.01210). Raises UserError for a file in neither.
    """
    problems = {}
    for number, row in read_jsonl(path):
        expected = FIELDS_WITH_INPUTS if "base_input" in row else FIELDS_WITH_CHECK
        missing = expected - row.keys()
        if missing:
            raise UserError(f"{path}, line {number}: expected a problem, but it has no "
                            f"{', '.join(sorted(missing))}")
        problems[row["task_id"]] = row
    if not problems:
        raise UserError(f"{path}: no problems in it")
    return problems


def code_of(sample, number, problems):
    """The program that a sample stands for. Raises UserError, which names it by its number."""
    task_id = sample.get("task_id")
    text = sample.get("solution", sample.get("completion"))
    if not isinstance(text, str) or task_id not in problems:
        raise UserError(f"sample {number}: expected a string `completion` (or `solution`) and the "
                        f"`task_id` of a problem in the file, found task_id {task_id!r}")
    if "solution" in sample:
        return text
    return problems[task_id]["prompt"] + text


# -----------------------------------------------------------------------------
# what canonical solutions give, kept in the cache

NOT_KNOWN = "null\n"  # what a judge is told of a canonical solution that has not run


class KnownResults:
    """What judges have found out about canonical solutions: a line of JSON by task_id.

    The folder's name follows from the problems and from the judge's programs, so that an edit of
    either is always seen.
    """

    def __init__(self, problems):
        # sandbox.py too: how values are packed decides what the expected outputs look like
        digest = hashlib.sha256(json.dumps(problems, sort_keys=True).encode())
        for program in (JUDGE, JUDGE.with_name("sandbox.py")):
            digest.update(program.read_bytes())
        self.folder = store.CACHE / "expected" / digest.hexdigest()[:12]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder {self.folder}: {error.strerror}; set "
                            "NANOPROXY_CACHE to a place that can be written") from None

    def path(self, task_id):
        return self.folder / f"{task_id.replace('/', '-')}.json.gz"

    def read(self, task_id):
        path = self.path(task_id)
        if not path.exists():
            return NOT_KNOWN
        return gzip.decompress(path.read_bytes()).decode()

    def write(self, task_id, line):
        store.write_file(self.path(task_id), gzip.compress(line.encode(), 1))


# -----------------------------------------------------------------------------
# judges


@functools.cache
def warn_once(text):
    print(text, file=sys.stderr)


class JudgeDied(Exception):
    """The judge is gone. An answer that keeps it busy for too long does that, see `watchdog`."""


class Judge:
    """A judge's process: lib/judge.py says what goes in and what comes out.

    Attributes: missing: what it could not isolate from completions here, a list of words.
    """

    def __init__(self):
        """Raises UserError where none starts."""
        command = [sys.executable, "-I", str(JUDGE), f"judge of {os.getpid()}"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            start_new_session=True)  # Ctrl-C is for this process alone
        try:
            self.missing = self.read()
        except JudgeDied:
            self.close()
            raise UserError("the process that runs the tests did not start; "
                            "see the lines above") from None

    def write(self, text):
        try:
            self.process.stdin.write(text)
            self.process.stdin.flush()
        except OSError:
            raise JudgeDied from None

    def read_line(self):
        line = self.process.stdout.readline()
        if not line.endswith("\n"):
            raise JudgeDied
        return line

    def read(self):
        return json.loads(self.read_line())

    def verdicts(self, job, known_results):
        """Yield a verdict for each of job["codes"], a string. Raises JudgeDied."""
        task_id = job["problem"]["task_id"]
        # It stays text here: expected outputs can be megabytes, which only the judge has to parse.
        known = known_results.read(task_id)
        self.write(json.dumps(job) + "\n" + known)
        now_known = self.read_line()
        if now_known.startswith('{"error"'):
            error = json.loads(now_known)["error"]
            for _ in job["codes"]:
                yield f"failed: canonical solution: {error}"
            return
        if known == NOT_KNOWN:
            known_results.write(task_id, now_known)
        for _ in job["codes"]:
            yield self.read()

    def close(self):
        """End the process, which ends by itself when it has nothing to read any more."""
        self.process.communicate()

    def kill(self):
        self.process.kill()


# -----------------------------------------------------------------------------
# scoring


class Scoring:
    """One call of `score`: the problems' verdicts so far, filled in by several workers."""

    def __init__(self, problems, codes, limits, progress):
        """codes: a list of programs by task_id; limits: {"timeout", "memory"}; progress: a tqdm."""
        self.problems = problems
        self.codes = codes
        self.limits = limits
        self.progress = progress
        self.known_results = KnownResults(problems)
        self.verdicts = defaultdict(list)   # by task_id, a list of strings in the order of `codes`
        self.waiting = iter(codes)          # the task_ids that no worker has taken yet
        self.judges = {}                    # by the worker's number
        self.stopped = threading.Event()

    def work(self, number):
        """Score problems with a judge of one's own until none is waiting. One of the workers."""
        self.start_judge(number)
        for task_id in self.waiting:  # each task_id comes to one worker only
            self.score_problem(task_id, number)
        self.judges[number].close()

    def start_judge(self, number):
        judge = Judge()
        self.judges[number] = judge
        if judge.missing:
            warn_once("not isolated from completions on this machine: "
                      f"{', '.join(judge.missing)}")

    def score_problem(self, task_id, number):
        """Collect the verdicts of a problem's codes, if need be with several judges."""
        codes, verdicts = self.codes[task_id], self.verdicts[task_id]
        # A judge that dies has lost one verdict: the next one goes on with the codes after that.
        while len(verdicts) < len(codes) and not self.stopped.is_set():
            left = codes[len(verdicts):]
            job = {"problem": self.problems[task_id], "codes": left, **self.limits}
            judge = self.judges[number]
            try:
                for verdict in judge.verdicts(job, self.known_results):
                    verdicts.append(verdict)
                    self.progress.update()
            except JudgeDied:
                verdicts.append("failed: took the judge down")
                self.progress.update()
                judge.kill()  # it may have closed its output and live on
                judge.close()
                self.start_judge(number)

    def stop(self):
        """Have the workers end at once."""
        self.stopped.set()  # first, so that a worker whose judge has gone does not try again
        for judge in list(self.judges.values()):
            judge.kill()


def codes_by_task(problems, samples):
    """The programs that the samples stand for: a list by task_id. Raises UserError."""
    codes = defaultdict(list)
    for number, sample in enumerate(samples, 1):
        code = code_of(sample, number, problems)
        codes[sample["task_id"]].append(code)
    return codes


def score(problems, samples, timeout=3.0, memory=1 << 30):
    """Run the samples, rows {task_id, completion} or {task_id, solution}, on their problems' tests.

    timeout: seconds for HumanEval's `check`, if the canonical solution's time does not ask for
    more; memory: bytes. Returns the rows with `result`, "passed" or how it failed, with `passed`
    and, where the problem has base inputs, `base_passed`. Raises UserError for a sample of no
    problem.
    """
    # A problem's samples are judged together: its tests are then sent and compiled once.
    codes = codes_by_task(problems, samples)
    limits = {"timeout": timeout, "memory": memory}
    workers = min(os.cpu_count(), max(1, len(codes)))
    with tqdm(total=len(samples), desc="running tests", leave=False, disable=None) as progress:
        scoring = Scoring(problems, codes, limits, progress)
        with ThreadPoolExecutor(workers) as pool:
            try:
                list(pool.map(scoring.work, range(workers)))
            except BaseException:  # Ctrl-C among them
                scoring.stop()
                raise
    return with_results(samples, problems, scoring.verdicts)


def with_results(samples, problems, verdicts):
    """The samples' rows with their results. verdicts: by task_id, in the order of its samples."""
    next_verdict = {task_id: iter(texts) for task_id, texts in verdicts.items()}
    rows = []
    for sample in samples:
        task_id = sample["task_id"]
        result = next(next_verdict[task_id])
        row = {**sample, "result": result, "passed": result == "passed"}
        if "base_input" in problems[task_id]:
            row["base_passed"] = result.startswith("passed")
        rows.append(row)
    return rows
