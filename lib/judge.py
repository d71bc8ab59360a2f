"""
The judge: which completions pass their problem's tests.

eval.py reads its files with `read_problems` and `read_samples`, lib/probes.py has them scored by
`score`, and `explain_failures` says what went wrong. `score` starts this file as a program, too,
which then needs nothing but the standard library and lib/sandbox.py, where completions are kept
from doing harm.
"""
import ast
import collections.abc
import contextlib
import copy
import itertools
import json
import math
import numbers
import os
import re
import secrets
import select
import socket
import subprocess
import sys
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor, as_completed

IS_PROGRAM = __name__ == "__main__"
if IS_PROGRAM:
    # What completions import most: their processes are copies of this one, and find it loaded.
    import bisect, functools, heapq, operator, random, string, typing  # noqa: F401
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # `python -P` leaves it out
    from sandbox import keep
    del sys.path[0]  # completions find Python's own modules only
else:
    from tqdm import tqdm

    from lib.data import read_jsonl
    from lib.options import UserError, did_you_mean, warn_once

# -----------------------------------------------------------------------------
# the idea
#
# A pass must not be something that a completion can fake, so it never meets its tests. Each
# completion has a process that knows only its text, is sent arguments, and sends back return
# values, both as plain data. Another process holds the tests and the expected outputs, and says how
# they went. All that it believes is data: whoever sends the right values for all arguments has
# solved the problem.
#
#     score() --problem, code--> run_tests() --code, arguments--> run_completion()
#             <----verdict------             <--return values---
#
# A keeper, one for each of score's threads, makes both processes and ends them (lib/sandbox.py).
#
# Some tests ask for more than plain data can show: that a list is changed in place, that a returned
# function adds. Where a problem's own solution passes *beside* its tests, in one process with them,
# and not apart from them, all its completions are tested beside them; how many problems these are
# is said, since there a completion could cheat.

KINDS = ("base_input", "plus_input")  # the inputs of HumanEval+ and MBPP+: the old tests, the new

# limits, in seconds; the first three are evalplus's
SLOWER = 4              # an input may take so many times what the canonical solution takes,
LEAST_SECONDS = 1.0     # or this if it is more,
MOST_SECONDS = 60.0     # and all inputs together this; also the canonical solution, for one
MANY_SECONDS = 600.0    # the canonical solution, for all inputs
A_WEEK = 604_800.0      # the longest --timeout: no clock has to count further
PATIENCE = 10           # in wall-clock time tests may take so many times their limit

# -----------------------------------------------------------------------------
# problems and samples: the completions of a model, in HumanEval's word

# a row's fields, and what each has to be
OF_A_PROBLEM = {"task_id": str, "prompt": str, "entry_point": str}
WITH_TEST = OF_A_PROBLEM | {"test": str}  # HumanEval
WITH_INPUTS = OF_A_PROBLEM | {            # HumanEval+, MBPP+
    "canonical_solution": str, "base_input": list, "plus_input": list, "atol": (int, float)}
IN_WORDS = {str: "a string", list: "a list", (int, float): "a number"}


def check_fields(row, fields, place, what):
    """Raise a UserError, which begins with `place`, if the row lacks one of `fields`."""
    for field, expected in fields.items():
        if field not in row:
            raise UserError(f"{place}: no `{field}` in it, only {', '.join(row) or 'nothing'}; "
                            f"expected {what} with {', '.join(fields)}")
        if not isinstance(row[field], expected):
            raise UserError(f"{place}: `{field}` is {row[field]!r:.40}, "
                            f"expected {IN_WORDS[expected]}")


def read_problems(path):
    """The problems of a .jsonl[.gz] file, a dict by task_id.

    Formats: HumanEval's (Chen et al. 2021, arXiv 2107.03374), and that of HumanEval+ and MBPP+ (Liu
    et al. 2023, arXiv 2305.01210). Raises UserError for a file in neither.
    """
    problems = {}
    for number, row in read_jsonl(path):
        place = f"{path}, line {number}"
        check_fields(row, WITH_INPUTS if "base_input" in row else WITH_TEST, place, "a problem")
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError:  # JSON can spell what no text has
            raise UserError(f"{place}: half of a surrogate pair in it, expected text") from None
        problems[row["task_id"]] = row
    if not problems:
        raise UserError(f"{path}: no problems in it")
    if not any(map(is_in_python, problems.values())):
        raise UserError(f"{path}: none of its {len(problems):,} problems has tests in Python")
    return problems


def is_in_python(problem):
    """Whether what decides about a problem, its tests or its canonical solution, is Python."""
    code = canonical_code(problem) if "base_input" in problem else problem["test"]
    with contextlib.suppress(SyntaxError, ValueError):
        ast.parse(code)
        return True
    return False


def read_samples(path, problems):
    """The samples in a file of JSON lines, a list of rows. Raises UserError, which names a row."""
    samples = []
    for number, row in read_jsonl(path):
        place = f"{path}, line {number}"
        code = "solution" if "solution" in row else "completion"
        check_fields(row, {"task_id": str, code: str}, place, "a sample")
        task_id = row["task_id"]
        if task_id not in problems:
            raise UserError(f"{place}: `task_id` is {task_id!r}, expected one of the problems', "
                            f"such as {min(problems)!r}{did_you_mean(task_id, problems)}")
        samples.append(row)
    if not samples:
        raise UserError(f"{path}: no samples in it")
    return samples


def uneven_samples(problems, samples):
    """What a reader of pass@k must know of the samples, {name: text}, where it is so.

    {"problems with samples": "21 of 164",     pass@k is of these 21 alone
     "completions a problem": "5 to 10"}       and is there for k up to 5
    """
    completions = Counter(sample["task_id"] for sample in samples)
    fewest, most = min(completions.values()), max(completions.values())
    found = {}
    if len(completions) < len(problems):
        found["problems with samples"] = f"{len(completions)} of {len(problems)}"
    if fewest < most:
        found["completions a problem"] = f"{fewest} to {most}"
    return found


# -----------------------------------------------------------------------------
# scoring

PROGRAM = os.path.abspath(__file__)
CANONICAL = "canonical solution: "  # not "failed: ..", so that no completion can say so
OF_THE_JUDGE = ("result", "passed", "base_passed", "beside")  # a row's fields that `score` writes


class Failed(BaseException):
    """A completion is wrong; the text says how. No Exception, since tests catch these."""


class Keeper:
    """The program that makes processes for tests and completions: see `keep` in lib/sandbox.py.

    confines: whether this machine can hold what completions do. The constructor raises UserError
    if the program does not start.
    """

    def __init__(self):
        self.orders, theirs = socket.socketpair()
        # Without the user's packages, settings and secrets, and with one seed of hashes: the order
        # of a set must be the one that the canonical solution met.
        needed = ("PATH", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
        environment = {name: os.environ[name] for name in needed if name in os.environ}
        environment |= {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-s", "-P", PROGRAM, f"judge of {os.getpid()}"],
            env=environment, stdin=theirs, stdout=subprocess.DEVNULL,
            start_new_session=True)  # Ctrl-C is for this process alone
        theirs.close()
        answer = self.orders.recv(100)
        if not answer:
            raise UserError("the process that runs the tests did not start; see the lines above")
        self.confines = answer == b"True"

    def ask(self, job):
        """What a process of tests, `run_tests`, finds out about a job, a dict. Raises Failed, and
        UserError if the program has ended."""
        verdicts, theirs = socket.socketpair()
        seconds = int(job["limit"]) + 10  # of computing, which no process of a completion passes
        answer = b""
        try:
            socket.send_fds(self.orders, [str(seconds).encode()], [theirs.fileno()])
            theirs.close()
            # The tests keep the time. This is for what they can't end: a machine that gives them no
            # time, or data that keeps them busy, such as numbers that hash alike.
            verdicts.settimeout(PATIENCE * job["limit"] + 60)
            with verdicts, contextlib.suppress(OSError):
                verdicts.sendall(json.dumps(job).encode() + b"\n")
                answer = verdicts.makefile("rb").readline()
            self.orders.send(b".")
        except ConnectionError:
            raise UserError("the process that runs the tests has ended; see the lines above, or is "
                            "there too little memory, or disk for temporary files?") from None
        if not answer.endswith(b"\n"):
            raise Failed("took its tests down")
        found = json.loads(answer)
        if "failed" in found:
            raise Failed(found["failed"])
        return found

    def close(self):
        """Have it end all its processes, then itself."""
        with contextlib.suppress(OSError):
            self.orders.shutdown(socket.SHUT_RDWR)
        self.process.wait()


class Judge:
    """One problem's: learns what its canonical solution shows, then has a verdict on each code."""

    def __init__(self, keeper, problem, timeout):
        self.keeper = keeper
        self.problem = problem
        self.timeout = min(timeout, A_WEEK)
        self.has_inputs = "base_input" in problem
        self.kinds = KINDS if self.has_inputs else ("test",)
        # of the canonical solution, {kind: {"seconds", "expected"}}; 0 seconds until it has passed
        self.known = {kind: {"seconds": 0.0} for kind in self.kinds}
        self.beside = False
        self.error = None  # how the canonical solution fails, where its outputs are needed
        try:
            self.known = self.canonical(beside=False)
        except Failed as failed:
            try:
                self.known = self.canonical(beside=True)
                self.beside = True
            except Failed:
                if self.has_inputs:  # HumanEval's tests do without one
                    self.error = str(failed)

    def canonical(self, beside):
        """What the canonical solution shows, by kind of tests. Raises Failed."""
        code = canonical_code(self.problem)
        limit = MANY_SECONDS if self.has_inputs and not beside else MOST_SECONDS
        return {kind: self.ask(kind, code, beside, limit) for kind in self.kinds}

    def ask(self, kind, code, beside, limit, expected=None):
        """What the tests of a kind show of a code. They learn no more than they need."""
        names = ("task_id", "entry_point", "prompt", "canonical_solution", "atol", kind)
        problem = {name: self.problem[name] for name in names if name in self.problem}
        return self.keeper.ask({"kind": kind, "problem": problem, "code": code, "beside": beside,
                                "limit": limit, "expected": expected})

    def limit(self, kind):
        """Seconds for the tests of a kind; evalplus's rules, but by the process's own clock."""
        if not self.has_inputs:
            return max(self.timeout, SLOWER * self.known[kind]["seconds"])
        if self.beside:
            return MOST_SECONDS
        of_inputs = sum(seconds for _, seconds, _ in self.known[kind]["expected"])
        return min(MOST_SECONDS, of_inputs) + 2  # the 2 for defining the function

    def result(self, code):
        """"passed" or how it failed, of one code."""
        if self.error:
            return CANONICAL + self.error
        failure = "failed"  # what it is called if it fails now
        for kind in self.kinds:
            expected = self.known[kind].get("expected")
            try:
                self.ask(kind, code, self.beside, self.limit(kind), expected)
            except Failed as failed:
                return f"{failure}: {failed}"
            failure = "passed base, then failed"
        return "passed"

    def verdict(self, code):
        """What `score` says of one code: those of OF_THE_JUDGE that its problem has, by name."""
        result = self.result(code)
        verdict = {"result": result, "passed": result == "passed"}
        if self.has_inputs:
            verdict["base_passed"] = result.startswith("passed")
        if self.beside:
            verdict["beside"] = True
        return verdict


def can_score():
    """Whether this system has the limits that judges put on completions. Windows doesn't."""
    return sys.platform != "win32"


def score(problems, samples, timeout=3.0, unconfined=False):
    """Run the samples, rows {task_id, completion} or {task_id, solution}, on their problems' tests.

    timeout: seconds for HumanEval's `check`, if the canonical solution's time does not ask for
    more; unconfined: whether to run them on a machine that can't hold them, too. Returns the rows
    with `result`, "passed" or how it failed, with `passed`, where the problem has base inputs
    `base_passed`, and `beside` where the problem is tested beside its tests; what else they hold is
    carried along. Raises UserError where nothing may run.
    """
    if not can_score():
        raise UserError("completions can't be scored on Windows, which has no POSIX limits: do it "
                        "on Linux, macOS or WSL, or measure --task=bpb")
    rows = []
    by_problem = defaultdict(list)
    for sample in samples:
        row = {name: value for name, value in sample.items() if name not in OF_THE_JUDGE}
        rows.append(row)
        by_problem[row["task_id"]].append(row)

    workers = min(os.cpu_count() or 1, max(1, len(by_problem)))
    keepers = [Keeper() for _ in range(workers)]
    progress = tqdm(total=len(rows), desc="running tests", leave=False, disable=None)
    task_ids = iter(by_problem)

    def add_verdicts(keeper):
        for task_id in task_ids:  # each thread takes the next one
            problem = problems[task_id]
            judge = Judge(keeper, problem, timeout)
            for row in by_problem[task_id]:
                is_whole = "solution" in row  # a completion goes on from the prompt
                code = row["solution"] if is_whole else problem["prompt"] + row["completion"]
                row |= judge.verdict(code)
                progress.update()

    with progress, ThreadPoolExecutor(workers) as pool:
        try:
            say_unconfined(keepers[0], unconfined)
            for thread in as_completed(pool.submit(add_verdicts, keeper) for keeper in keepers):
                thread.result()  # what goes wrong in one of them is raised here
        finally:  # after Ctrl-C the threads find their keepers gone
            for keeper in keepers:
                keeper.close()
    return rows


def say_unconfined(keeper, unconfined):
    """Say it where completions are not held. Raises UserError if they are not to run then."""
    if keeper.confines:
        return
    if not unconfined:
        raise UserError("this machine can't hold completions (it takes Landlock, of Linux 5.13 and "
                        "later, on x86_64 or aarch64), and one could delete your files, say; add "
                        "--unconfined to run them all the same")
    warn_once("not isolated from completions on this machine: files, network, processes; Python "
              "refuses them as far as it can")


# -----------------------------------------------------------------------------
# what went wrong


def counts_to_know(rows):
    """What a table of results must say of scored rows, what there is of this:

    {"canonical solutions that fail": 3, "problems tested beside their tests": 1}

    A line on stderr names some of the problems that no sample can pass.
    """
    failing = {}  # {task_id: how}, in the order of the rows
    for row in rows:
        if row["result"].startswith(CANONICAL):
            failing[row["task_id"]] = row["result"].removeprefix(CANONICAL)
    if failing:
        some = [f"{task_id} ({how})" for task_id, how in failing.items()][:5]
        warn_once(f"{len(failing):,} canonical solutions fail, so no sample of their problems "
                  f"passes, such as: {', '.join(some)}")
    beside = {row["task_id"] for row in rows if "beside" in row}
    counts = {"canonical solutions that fail": len(failing),
              "problems tested beside their tests": len(beside)}
    return {name: count for name, count in counts.items() if count}


def likely_cause(row, problem):
    """What may be wrong with a completion that failed, in words, or None."""
    if "```" in row.get("solution", row.get("completion")):
        return "have Markdown fences (```): strip them"
    if "solution" in row and f"def {problem['entry_point']}(" not in row["solution"]:
        return ("lack the function that the tests call; if these `solution`s go on from the "
                "prompt, name them `completion`")
    if row["result"].endswith("IndentationError"):
        return "lost the indentation of their first line: do not strip what a model writes"
    return None


def explain_failures(problems, rows):
    """Say on stderr how scored rows failed: a line a kind, then the likely cause if most agree."""
    failed = [row for row in rows if not row["passed"]]
    if not failed:
        return
    print(f"{len(failed):,} of {len(rows):,} completions failed:", file=sys.stderr)
    kinds = Counter(row["result"].rpartition("failed: ")[2] for row in failed)
    for kind, count in kinds.most_common(8):
        # a completion may name its exception as it likes, control characters included
        print(f"  {kind if kind.isprintable() else repr(kind)} {count:,}", file=sys.stderr)
    causes = Counter(likely_cause(row, problems[row["task_id"]]) for row in failed)
    ((cause, count),) = causes.most_common(1)
    if cause and count > len(failed) / 2:
        print(f"likely cause: most completions {cause}", file=sys.stderr)


# -----------------------------------------------------------------------------
# values as plain data

PLAIN = {type(None), bool, str, float}  # JSON carries the values of these types as they are
BIG_INT = 2 ** 63                       # integers from here on are sent in hexadecimal
MOST_ITEMS = 10 ** 6                    # of an iterator, which may be without end


def pack(x):
    """A value as JSON can carry it, with its type; `unpack` is the inverse.

    What is not plain is an object with one key: (1, 2) becomes {"tuple": [1, 2]}.
    """
    kind = type(x)
    if kind in PLAIN:
        return x
    if kind is int:
        return x if abs(x) < BIG_INT else {"int": hex(x)}
    if kind is list:
        return [pack(y) for y in x]
    if kind in (tuple, set, frozenset):
        return {kind.__name__: [pack(y) for y in x]}
    if kind is dict:
        return {"dict": [[pack(key), pack(value)] for key, value in x.items()]}
    if kind is complex:
        return {"complex": [x.real, x.imag]}
    return pack_like_plain(x)


def pack_like_plain(x):
    """Pack a value of any other type as the plain value that it would compare as.

    A subclass of a built-in type comes back as an unnamed subclass with the base's value and
    behaviour, so that an `__eq__` of the completion's own does not travel.
    """
    module = getattr(type(x), "__module__", None)
    if module == "numpy" and getattr(x, "shape", None) == ():  # a number of numpy's
        value = x.item()
        return value if type(value) is bool else {"subclass": pack(value)}
    for base in (int, float, complex, str, list, tuple, dict, set, frozenset):
        if isinstance(x, base):
            return {"subclass": pack(base(x))}
    if isinstance(x, collections.abc.Set):  # a dict's keys
        return {"subclass": pack(set(x))}
    if isinstance(x, numbers.Number) and float(x) == x:  # a fraction, a decimal
        return {"subclass": pack(float(x))}
    if isinstance(x, collections.abc.Iterable):  # an array, a range, a generator: equal to no list
        return {"iterator": [pack(y) for y in itertools.islice(x, MOST_ITEMS)]}
    return {"object": None}  # equal to nothing


MAKERS = {  # by the one key of a packed value: what makes the value again
    "int": lambda text: int(text, 16),
    "complex": lambda parts: complex(*parts),
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "dict": dict,
    "iterator": iter,
    "subclass": lambda value: type("subclass", (type(value),), {})(value),
    "object": lambda _: object(),
}
NO_PLAIN_DATA = re.compile(r'{"(iterator|object)": ')


def unpack(x):
    """The value that `pack` has made x of. Raises various errors if x comes from elsewhere."""
    if isinstance(x, list):
        return [unpack(y) for y in x]
    if not isinstance(x, dict):
        return x
    ((kind, content),) = x.items()
    return MAKERS[kind](unpack(content))


# -----------------------------------------------------------------------------
# the process of a completion


def run_completion(channel):
    """Define a completion's function, then call it on what its tests send by a socket.

    In:  {"code", "entry_point", "token"}; then {"token", "calls": lists of packed [list of
         arguments, dict of keyword arguments]}, or {"token", "beside": [problem, kind]} for tests
         to be run here; each a line.
    Out: a line for the definition, one for each call, one for the tests: the token and the
         `outcome`. Whoever answers before being asked does not know the token.
    """
    requests, replies = channel.makefile("rb"), channel.makefile("wb")
    job = json.loads(requests.readline())
    scope = {}

    def define():
        exec(compile(job["code"], "completion", "exec"), scope)
        scope[job["entry_point"]]  # a KeyError here is the verdict

    def call(packed):
        arguments, keywords = unpack(packed)
        return pack(scope[job["entry_point"]](*arguments, **keywords))

    def reply(token, line):
        replies.write(token.encode() + b" " + line)
        replies.flush()

    reply(job["token"], outcome(define))
    for line in requests:
        request = json.loads(line)
        for packed in request.get("calls", []):
            reply(request["token"], outcome(call, packed))
        if "beside" in request:
            reply(request["token"], outcome(check_beside, scope, *request["beside"]))


def outcome(function, *arguments):
    """What a call gave, as a line for the tests: "returned [1, 2]" or "raised ValueError"."""
    try:
        line = "returned " + json.dumps(function(*arguments))
    except BaseException as error:
        line = f"raised {type(error).__name__}"
    return line.encode("ascii", "replace") + b"\n"


# -----------------------------------------------------------------------------
# the process of the tests

MOST_REPLY = 1 << 28  # bytes of an answer; MBPP+'s list of a million combinations has 100 MB


class Completion:
    """A completion's process, as its tests see it: they `write` what to do, `read` what came of it.

    Times are the process's own: without that in which it waited for a core. A verdict must not
    depend on how busy the machine is. Time that the process sleeps does count.

    spent: the seconds that the tests have waited for it so far.
    """

    def __init__(self, channel, clock):
        self.channel = channel
        self.clock = clock          # /proc/PID/schedstat, or an empty file
        self.token = ""             # of the last request
        self.waited = 0.0
        self.buffer = bytearray()   # what it has sent and nobody has read
        self.spent = 0.0

    def now(self):
        """Seconds since some moment, by the process's clock."""
        with contextlib.suppress(OSError, ValueError):  # it has ended, and waits no more
            _, nanoseconds_waited, _ = os.pread(self.clock.fileno(), 100, 0).split()
            self.waited = int(nanoseconds_waited) / 1e9
        return time.monotonic() - self.waited

    def write(self, request):
        """Send a line of JSON, as `run_completion` expects it."""
        self.token = secrets.token_hex(8)
        with contextlib.suppress(OSError):  # where it has ended, `read` says so
            self.channel.sendall(json.dumps(request | {"token": self.token}).encode() + b"\n")

    def call_on_each(self, inputs):
        """Have the function called on rows of arguments. There is a `read` for each."""
        self.write({"calls": [pack([row, {}]) for row in inputs]})

    def read(self, limit):
        """What the next call, or the definition, returned: packed, as JSON text.

        Raises Failed if it raised something, and after `limit` seconds by the process's own clock.
        """
        # Often the answer is there: the process goes on while the one before is compared.
        if b"\n" not in self.buffer:
            started = self.now()
            self.receive_line(limit)
            # Linux counts a wait when it is over, so one from before may be counted now.
            self.spent += max(0.0, self.now() - started)
        end = self.buffer.find(b"\n")
        line = bytes(self.buffer[:end])
        del self.buffer[:end + 1]  # at the front of a bytearray this copies nothing
        # "TOKEN returned [1, 2]" or "TOKEN raised ValueError", if the process is what it should be
        token, _, answer = line.decode("ascii", "replace").partition(" ")
        outcome, _, text = answer.partition(" ")
        if token != self.token:
            raise Failed("wrong answer")
        if outcome != "returned":
            raise Failed(text[:100])
        return text

    def receive_line(self, limit):
        """Add to the buffer until there is the end of a line in it. Raises Failed."""
        deadline = self.now() + limit
        part = b""
        while b"\n" not in part:
            # a process that waited for a core has time left when the wall clock says it's over
            left = deadline - self.now()
            if left < 0:
                raise Failed("timed out")
            readable, _, _ = select.select([self.channel], [], [], left + 0.001)
            if not readable:
                continue
            part = b""
            with contextlib.suppress(OSError):  # it has ended, with something unread
                part = self.channel.recv(1 << 20)
            self.buffer += part
            if not part:
                raise Failed("exited")
            if len(self.buffer) > MOST_REPLY:
                raise Failed("too much output")


def run_tests(verdicts, channel, clock):
    """Be the process of the tests: read a job, see `Judge.ask`, and write what it shows.

    A line of JSON: {"seconds"}, with {"expected"} of a canonical solution, or {"failed"}: how.
    """
    job = json.loads(verdicts.makefile("rb").readline())
    problem, kind, limit = job["problem"], job["kind"], job["limit"]
    completion = Completion(channel, clock)
    found = {}
    try:
        completion.write({"code": job["code"], "entry_point": problem["entry_point"]})
        completion.read(limit)
        if job["beside"]:
            # Who exits or prints has not answered. But who looks for the tests there finds them.
            completion.write({"beside": [problem, kind]})
            completion.read(limit - completion.spent)
        elif kind == "test":
            run_check(completion, problem, limit)
        elif job["expected"] is None:
            found["expected"] = expected_outputs(completion, problem, kind, limit)
        else:
            check_outputs(completion, problem, kind, limit, job["expected"])
    except BaseException as error:  # the completion's, the tests', or that of inputs without sense
        failure = str(error) if isinstance(error, Failed) else type(error).__name__
        found["failed"] = "wrong answer" if failure == "AssertionError" else failure
    found["seconds"] = completion.spent
    verdicts.sendall(json.dumps(found).encode() + b"\n")


# -----------------------------------------------------------------------------
# HumanEval: a function `check` that calls the completion's


def surroundings(problem):
    """What the tests find beside the function, a dict: what the prompt defines, such as helpers.

    It is made with the canonical solution, as a completion's code never runs here; without a usable
    one with an empty function.
    """
    for code in (canonical_code(problem), problem["prompt"] + "    pass\n"):
        scope = {}
        with contextlib.suppress(Exception):
            exec(code, scope)
            return scope
    return {}


# What tests may expect to be raised. They see anything else as `Failed`, an AssertionError too,
# lest it be taken for one of their own.
EXPECTED = {kind.__name__: kind for kind in (
    ArithmeticError, AttributeError, Exception, IndexError, KeyError, LookupError, NameError,
    NotImplementedError, OSError, OverflowError, RecursionError, RuntimeError, StopIteration,
    TypeError, ValueError, ZeroDivisionError)}


def run_check(completion, problem, limit):
    """Run HumanEval's `check` here, on a stand-in that has the function called in its process."""
    # What the tests call in place of the function: it only sends arguments and returns answers.
    def candidate(*arguments, **keywords):
        call = [list(arguments), keywords]
        packed = pack(call)
        if repr(unpack(packed)) != repr(call):  # the order of a set counts, too
            raise Failed("arguments that are no plain data")
        completion.write({"calls": [packed]})
        try:
            return unpack(json.loads(completion.read(limit - completion.spent)))
        except Failed as failed:
            raise EXPECTED.get(str(failed), failed) from None

    scope = surroundings(problem)
    scope[problem["entry_point"]] = candidate
    exec(problem["test"], scope)
    scope["check"](candidate)


# -----------------------------------------------------------------------------
# evalplus's special cases, of its version 0.3.1 (evalplus/data/mbpp.py, evalplus/eval/__init__.py)
#
# JSON has made lists of MBPP+'s tuples and sets, strings of its complex numbers.


def tuples(rows):
    """The lists in a list as tuples."""
    return [tuple(row) for row in rows]


def all_tuples(x):
    """x with tuples in place of all lists."""
    return tuple(map(all_tuples, x)) if isinstance(x, list) else x


def restore(number, row):
    """A row of arguments of the problem Mbpp/`number`, as its solutions expect it."""
    if number in (2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616,
                  630, 726, 740, 744, 809):
        return tuples(row)
    if number in (63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780):
        return [tuples(x) for x in row]
    if number in (259, 401, 445):
        return [tuple(tuples(x)) for x in row]
    if number in (75, 413, 444, 753):
        return [tuples(row[0]), *row[1:]]
    if number in (106, 750):
        return [row[0], *tuples(row[1:])]
    if number in (250, 307, 405, 446, 617, 720, 763, 808):
        return [tuple(row[0]), *row[1:]]
    if number in (580, 615, 791):
        return all_tuples(row)
    if number == 278:
        return [tuple(tuple(x) if isinstance(x, list) else x for x in row[0])]
    if number == 722:
        return [{name: tuple(x) for name, x in row[0].items()}, *row[1:]]
    if number == 115:  # an empty set had been written as {}
        return [[set(x) if isinstance(x, list) and x else {} for x in row[0]]]
    if number == 124:
        return [float(row[0]), complex(row[1])]
    if number == 252:
        return [complex(row[0])]
    return row


def inputs_of(problem, kind):
    """The rows of arguments of a problem, as its solutions expect them."""
    family, _, number = problem["task_id"].partition("/")
    if family != "Mbpp" or not number.isdecimal():
        return problem[kind]
    return [restore(int(number), row) for row in problem[kind]]


# any order, and repeats, will do
SETS = ("similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly",
        "larg_nnum", "intersection_array", "find_dissimilar", "Diff")
# only whether there is an answer is asked for
ANSWERS = ("check_str", "text_match_three", "text_starta_endb")


def is_right(problem, arguments, out, want, atol):
    """Whether `out` is right where the canonical solution gave `want`, but for tolerance."""
    name = problem["entry_point"]
    if not problem["task_id"].startswith("Mbpp/"):
        if name != "find_zero":
            return out == want
        (coefficients,) = arguments  # of a polynomial, any zero of which will do
        return abs(sum(c * math.pow(out, i) for i, c in enumerate(coefficients))) <= atol
    if name == "are_equivalent":  # any answer
        return True
    if name in SETS:
        return set(out) == set(want)
    if name in ANSWERS:
        found = out if isinstance(out, bool) else out is not None
        return found == (want is not None)
    if name == "sum_div":
        return out in (want, 0)
    if name == "surface_Area":  # the height of a square pyramid may also be meant along its axis
        base, height = arguments
        by_axis = round(base ** 2 + 2 * base * math.sqrt((base / 2) ** 2 + height ** 2))
        return out == want or abs(out - by_axis) <= atol
    if name == "digit_distance_nums":  # the shorter number may also be filled up with zeros
        a, b = map(str, arguments)
        digits = zip(a.zfill(len(b)), b.zfill(len(a)))
        return out in (want, sum(abs(int(x) - int(y)) for x, y in digits))
    return out == want


def accepts(problem, arguments, out, want, atol):
    """Whether evalplus takes `out` where the canonical solution gave `want`.

    atol: absolute tolerance. Raises what comparing the two may raise.
    """
    if is_right(problem, arguments, out, want, atol):
        return True
    if atol == 0 or problem["entry_point"] == "find_zero" or type(out) is not type(want):
        return False
    return is_close(out, want, atol)


def is_close(out, want, atol):
    """Whether two numbers, or lists of numbers of the same lengths, are nearly equal."""
    if isinstance(want, (list, tuple)):
        return len(out) == len(want) and all(is_close(x, y, atol) for x, y in zip(out, want))
    return abs(out - want) <= atol + 1e-7 * abs(want)


# -----------------------------------------------------------------------------
# HumanEval+ and MBPP+: outputs compared with the canonical solution's


def canonical_code(problem):
    """The canonical solution as a program; where there is none, it is one that fails."""
    return f"{problem['prompt']}{problem.get('canonical_solution') or ''}\n"


def tolerance(out, atol):
    """The tolerance from an expected output on; as in evalplus, no float is compared exactly."""
    items = [out]
    if isinstance(out, (list, tuple)) and out:
        items = out
    if atol == 0 and all(isinstance(x, float) for x in items):
        return 1e-6
    return atol


def expected_outputs(completion, problem, kind, limit):
    """What the canonical solution gives on the inputs of one of KINDS.

    Returns for each input [output as JSON text, seconds that others may take, tolerance]. Raises
    Failed.
    """
    inputs = inputs_of(problem, kind)
    atol = problem["atol"]
    expected = []
    completion.call_on_each(inputs)
    for _ in inputs:
        before = completion.spent
        text = completion.read(min(MOST_SECONDS, limit - before))
        if NO_PLAIN_DATA.search(text):
            raise Failed("an output that is no plain data")
        out = unpack(json.loads(text))
        atol = tolerance(out, atol)
        expected.append([text, max(LEAST_SECONDS, SLOWER * (completion.spent - before)), atol])
    return expected


def check_outputs(completion, problem, kind, limit, expected):
    """Run a code on the inputs of one of KINDS. Raises Failed if an output is not as expected."""
    inputs = inputs_of(problem, kind)
    completion.call_on_each(inputs)
    # One at a time is read, so that each input has its own limit.
    for arguments, (want, seconds, atol) in zip(inputs, expected):
        text = completion.read(min(seconds, limit - completion.spent))
        if text == want:  # the same text is the same value
            continue
        try:
            out, want = unpack(json.loads(text)), unpack(json.loads(want))
            right = accepts(problem, arguments, out, want, atol)
        except Exception:  # what can't be compared is wrong
            right = False
        if not right:
            raise Failed("wrong answer")


def check_beside(scope, problem, kind):
    """Run a problem's tests in the process of the completion, which has defined what is in `scope`.

    Raises what they raise, AssertionError if an answer is wrong.
    """
    if kind == "test":
        exec(problem["test"], scope)
        scope["check"](scope[problem["entry_point"]])
        return
    function, of_canonical = scope[problem["entry_point"]], {}
    exec(canonical_code(problem), of_canonical)
    canonical = of_canonical[problem["entry_point"]]
    atol = problem["atol"]
    for arguments in inputs_of(problem, kind):
        want = canonical(*copy.deepcopy(arguments))
        atol = tolerance(want, atol)
        out = function(*copy.deepcopy(arguments))
        assert accepts(problem, arguments, out, want, atol)


if IS_PROGRAM:
    keep(socket.socket(fileno=0), run_tests, run_completion)
