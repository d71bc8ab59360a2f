"""
Scoring: which completions pass their problem's tests, by judges that this file starts.

eval.py reads its files with `read_problems` and `read_samples`, calls `score`, and says with
`explain_failures` what went wrong. The judges are lib/judge.py, and what keeps completions from
doing harm is in lib/sandbox.py.
"""
import contextlib
import gzip
import json
import os
import re
import subprocess
import sys
import threading
import zlib
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

from tqdm import tqdm

from lib import store
from lib.options import UserError, did_you_mean
from lib.results import code_hash, digest, warn_once
from lib.rows import read_jsonl

# Tests put other programs in its place.
JUDGE = Path(__file__).resolve().parent / "judge.py"

# parts of results
TOOK_DOWN = "took the judge down"
CANONICAL = "canonical solution: "  # not "failed: ..", so that no completion can say so

# -----------------------------------------------------------------------------
# problems

JSON_NAMES = {dict: "an object", list: "a list", bool: "a boolean", int: "a number",
              float: "a number"}


def described(value):
    """What a value that is no string is in JSON, with its beginning: an object ({"id": 17, ..)."""
    if value is None:
        return "null"
    return f"{JSON_NAMES[type(value)]} ({json.dumps(value)[:40]})"


FIELDS = ("task_id", "prompt", "entry_point")  # strings
FIELDS_WITH_CHECK = {*FIELDS, "test"}  # HumanEval
FIELDS_WITH_INPUTS = {*FIELDS, "canonical_solution", "plus_input", "atol"}  # HumanEval+, MBPP+


def is_text(string):
    """Whether a string has bytes. JSON can spell half of a surrogate pair, which has none."""
    try:
        string.encode()
    except UnicodeEncodeError:
        return False
    return True


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
        for field in FIELDS:
            if not isinstance(row[field], str):
                raise UserError(f"{path}, line {number}: `{field}` is {described(row[field])}, "
                                "expected a string")
        for field, value in row.items():
            if isinstance(value, str) and not is_text(value):
                raise UserError(f"{path}, line {number}: `{field}` has half of a surrogate pair, "
                                "expected text")
        problems[row["task_id"]] = row
    if not problems:
        raise UserError(f"{path}: no problems in it")
    return problems


# -----------------------------------------------------------------------------
# samples: the completions of a model, in HumanEval's word


def code_field(sample):
    """The field with the sample's code: a whole `solution`, or a `completion` of the prompt."""
    return "solution" if "solution" in sample else "completion"


def check_sample(sample, place, problems):
    """Raise a UserError, which begins with `place`, if the row is no sample of a problem."""
    for field in ("task_id", code_field(sample)):
        if field not in sample:
            raise UserError(f"{place}: no `{field}` in it, only {', '.join(sample) or 'nothing'}; "
                            "expected a `task_id` and a `completion` (or `solution`)")
        if not isinstance(sample[field], str):
            raise UserError(f"{place}: `{field}` is {described(sample[field])}, expected a string")
    task_id = sample["task_id"]
    if task_id not in problems:
        raise UserError(f"{place}: `task_id` is {task_id!r}, expected one of the problems', such "
                        f"as {min(problems)!r}{did_you_mean(task_id, problems)}")


def read_samples(path, problems):
    """The samples in a file of JSON lines, a list of rows. Raises UserError, which names a row."""
    samples = []
    for number, row in read_jsonl(path):
        check_sample(row, f"{path}, line {number}", problems)
        samples.append(row)
    if not samples:
        raise UserError(f"{path}: no samples in it")
    return samples


def code_of(sample, problems):
    """The program that a sample stands for."""
    code = sample[code_field(sample)]
    return code if "solution" in sample else problems[sample["task_id"]]["prompt"] + code


def uneven_samples(problems, samples):
    """What a reader of pass@k must know of the samples, {name: text}, which stderr says too.

    {"problems with samples": "21 of 164", "completions a problem": "5 to 10"}, where it is so.
    """
    completions = Counter(sample["task_id"] for sample in samples)
    fewest, most = min(completions.values()), max(completions.values())
    found = {}
    if len(completions) < len(problems):
        found["problems with samples"] = f"{len(completions)} of {len(problems)}"
        print(f"samples for {len(completions)} of {len(problems)} problems: pass@k is of these "
              f"{len(completions)} alone", file=sys.stderr)
    if fewest < most:
        found["completions a problem"] = f"{fewest} to {most}"
        print(f"{fewest} to {most} completions a problem: pass@k is there for k up to {fewest}",
              file=sys.stderr)
    return found


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
        programs = code_hash(JUDGE, JUDGE.with_name("sandbox.py"))
        self.folder = store.CACHE / "expected" / digest([problems, programs, sys.version])
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder {self.folder}: {error.strerror}; set "
                            "NANOPROXY_CACHE to a place that can be written") from None

    def path(self, task_id):
        return self.folder / f"{quote(task_id, safe='')}.json.gz"

    def read(self, task_id):
        line = ""
        with contextlib.suppress(OSError, EOFError, zlib.error):  # there is none, or it is damaged
            line = gzip.decompress(self.path(task_id).read_bytes()).decode()
        return line if line.endswith("\n") else NOT_KNOWN

    def write(self, task_id, line):
        store.write_file(self.path(task_id), gzip.compress(line.encode(), 1))


# -----------------------------------------------------------------------------
# judges


class JudgeDied(Exception):
    """The judge is gone. It ends where return values keep it busy for too long, see `watchdog`.

    in_canonical: whether these were the canonical solution's.
    """

    def __init__(self, in_canonical=False):
        super().__init__()
        self.in_canonical = in_canonical


class Judge:
    """A judge's process: lib/judge.py says what goes in and what comes out.

    Attributes: missing: what it could not isolate from completions here, a list of words.
    """

    def __init__(self):
        """Raises UserError where none starts."""
        # without the user's packages and settings, and with one seed of hashes: the order of a set
        # must be the one that the canonical solution met, perhaps in another judge
        command = [sys.executable, "-s", "-P", str(JUDGE), f"judge of {os.getpid()}"]
        environment = {name: value for name, value in os.environ.items()
                       if not name.startswith("PYTHON")}
        self.process = subprocess.Popen(
            command, env=environment | {"PYTHONHASHSEED": "0"}, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
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
        try:
            now_known = self.read_line()
        except JudgeDied:
            raise JudgeDied(in_canonical=known == NOT_KNOWN) from None
        if now_known.startswith('{"error"'):
            error = json.loads(now_known)["error"]
            for _ in job["codes"]:
                yield CANONICAL + error
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
            except JudgeDied as death:
                if death.in_canonical:  # it would take the next judge down too
                    lost = [CANONICAL + TOOK_DOWN] * len(left)
                else:
                    lost = [f"failed: {TOOK_DOWN}"]
                verdicts += lost
                self.progress.update(len(lost))
                judge.kill()  # it may have closed its output and live on
                judge.close()
                self.start_judge(number)

    def stop(self):
        """Have the workers end at once."""
        self.stopped.set()  # first, so that a worker whose judge has gone does not try again
        for judge in list(self.judges.values()):
            judge.kill()


def can_score():
    """Whether this system has the limits that judges put on completions. Windows doesn't."""
    return sys.platform != "win32"


def codes_by_task(problems, samples):
    """The programs that the samples stand for: a list by task_id. Raises UserError."""
    codes = defaultdict(list)
    for number, sample in enumerate(samples, 1):
        check_sample(sample, f"sample {number}", problems)
        code = code_of(sample, problems)
        codes[sample["task_id"]].append(code)
    return codes


def score(problems, samples, timeout=3.0, memory=4 << 30):
    """Run the samples, rows {task_id, completion} or {task_id, solution}, on their problems' tests.

    timeout: seconds for HumanEval's `check`, if the canonical solution's time does not ask for
    more; memory: bytes, by default as many as evalplus allows. Returns the rows with `result`,
    "passed" or how it failed, with `passed` and, where the problem has base inputs, `base_passed`.
    Says on stderr which canonical solutions fail. Raises UserError for a sample of no problem.
    """
    if not can_score():
        raise UserError("completions can't be scored on Windows, which has no POSIX limits: do it "
                        "on Linux, macOS or WSL, or measure --task=bpb")
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
    rows = with_results(samples, problems, scoring.verdicts)
    for task_id, cause in canonical_failures(rows).items():
        warn_once(f"{task_id}: the canonical solution fails ({cause}), so no sample of it passes")
    return rows


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


# -----------------------------------------------------------------------------
# what went wrong


def canonical_failures(rows):
    """{task_id: how its canonical solution fails}, of scored rows."""
    causes = {}
    for row in rows:
        if row["result"].startswith(CANONICAL):
            causes[row["task_id"]] = row["result"].removeprefix(CANONICAL)
    return causes


def count_of_canonical_failures(rows):
    """A result for eval.py's table, {} where all canonical solutions pass."""
    causes = canonical_failures(rows)
    return {"canonical solutions that fail": len(causes)} if causes else {}


def has_fences(row, problem):
    return "```" in row[code_field(row)]


def lacks_function(row, problem):
    """Whether a `solution` never names the function that the tests call."""
    name = re.escape(problem["entry_point"])
    return "solution" in row and not re.search(rf"\b{name}\b", row["solution"])


def lost_indentation(row, problem):
    """Whether a `completion` should go on inside the prompt's function, but begins at the margin.

    A model's answer does when it was stripped.
    """
    is_no_python = row["result"].endswith(("SyntaxError", "IndentationError"))
    if code_field(row) != "completion":
        return False
    code = row["completion"].lstrip("\n")
    at_margin = code != "" and not code[0].isspace()
    return is_no_python and at_margin and "def " in problem["prompt"] and "def " not in code


MOST_KINDS = 8  # that are listed
# What may be wrong with a completion that failed, and what to say if it is so with most. The first
# that applies is named.
CAUSES = {
    has_fences: "most completions have Markdown fences (```): strip them",
    lacks_function: "most `solution`s lack their function, as {task_id} (no function {name} in "
                    "it); if they go on from the prompt, name them `completion`",
    lost_indentation: "most completions, as of {task_id}, lost the indentation of their first "
                      "line: do not strip what a model writes",
}


def kinds_of_failure(failed):
    """Lines "wrong answer 3", the most frequent first, of scored rows that failed."""
    kinds = Counter()
    for row in failed:
        kind = row["result"].rpartition("failed: ")[2]
        # a completion may name its exception as it likes, control characters included
        kinds[kind if kind.isprintable() else repr(kind)] += 1
    lines = [f"{kind} {count:,}" for kind, count in kinds.most_common(MOST_KINDS)]
    others = sum(count for _, count in kinds.most_common()[MOST_KINDS:])
    if others:
        lines.append(f"others {others:,}")
    return lines


def explain_failures(problems, rows):
    """Say on stderr how scored rows failed: a line a kind, then the likely cause if most agree."""
    failed = [row for row in rows if not row["passed"]]
    if not failed:
        return
    print(f"{len(failed):,} of {len(rows):,} completions failed:", file=sys.stderr)
    for line in kinds_of_failure(failed):
        print(f"  {line}", file=sys.stderr)
    for is_so, text in CAUSES.items():
        alike = [row["task_id"] for row in failed if is_so(row, problems[row["task_id"]])]
        if len(alike) > len(failed) / 2:
            name = problems[alike[0]]["entry_point"]
            cause = text.format(task_id=alike[0], name=name)
            print(f"likely cause: {cause}", file=sys.stderr)
            break
