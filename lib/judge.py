"""
The judge: which completions pass their problem's tests.

eval.py reads its files with `read_problems` and `read_samples`, calls `score`, and says with
`explain_failures` what went wrong. `score` starts this file as a program, too, which then needs
nothing but the standard library and lib/sandbox.py, where completions are kept from doing harm.
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
import queue
import re
import secrets
import select
import socket
import subprocess
import sys
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor

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

# Limits, in seconds. evalplus's for an input: so many times the canonical solution's time, but at
# least a second.
SLOWER = 4
SECOND = 1.0
MOST_SECONDS = 60.0    # evalplus's for all inputs together; also a canonical solution's, for one
MANY_SECONDS = 600.0   # a canonical solution's for all inputs
A_WEEK = 604_800.0     # the longest limit: no clock has to count further
PATIENCE = 10          # on the wall's clock a limit is so many times as long

# -----------------------------------------------------------------------------
# problems and samples: the completions of a model, in HumanEval's word


FIELDS = ("task_id", "prompt", "entry_point")  # strings
FIELDS_WITH_CHECK = {*FIELDS, "test"}  # HumanEval
FIELDS_WITH_INPUTS = {*FIELDS, "canonical_solution", "plus_input", "atol"}  # HumanEval+, MBPP+


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
                raise UserError(f"{path}, line {number}: `{field}` is {row[field]!r:.40}, expected "
                                "a string")
        with contextlib.suppress(UnicodeEncodeError):  # JSON can spell what no text has
            json.dumps(row, ensure_ascii=False).encode()
            problems[row["task_id"]] = row
            continue
        raise UserError(f"{path}, line {number}: half of a surrogate pair in it, expected text")
    if not problems:
        raise UserError(f"{path}: no problems in it")
    if not any(map(is_in_python, problems.values())):
        raise UserError(f"{path}: none of its {len(problems):,} problems has tests in Python, "
                        "expected a file of Python problems")
    return problems


def is_in_python(problem):
    """Whether what decides about a problem, its tests or its canonical solution, is Python."""
    code = canonical_code(problem) if "base_input" in problem else problem["test"]
    with contextlib.suppress(SyntaxError, ValueError, TypeError):
        ast.parse(code)
        return True
    return False


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
            raise UserError(f"{place}: `{field}` is {sample[field]!r:.40}, expected a string")
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
    if "solution" in sample:
        return sample["solution"]
    return problems[sample["task_id"]]["prompt"] + sample["completion"]


def uneven_samples(problems, samples):
    """What a reader of pass@k must know of the samples, {name: text}, which stderr says too.

    {"problems with samples": "21 of 164", "completions a problem": "5 to 10"}, where it is so.
    """
    completions = Counter(sample["task_id"] for sample in samples)
    fewest, most = min(completions.values()), max(completions.values())
    found = {}
    if len(completions) < len(problems):
        some = found["problems with samples"] = f"{len(completions)} of {len(problems)}"
        print(f"samples for {some} problems: pass@k is of these {len(completions)} alone",
              file=sys.stderr)
    if fewest < most:
        uneven = found["completions a problem"] = f"{fewest} to {most}"
        print(f"{uneven} completions a problem: pass@k is there for k up to {fewest}",
              file=sys.stderr)
    return found


# -----------------------------------------------------------------------------
# scoring

PROGRAM = os.path.abspath(__file__)
TOOK_DOWN = "took its tests down"
CANONICAL = "canonical solution: "  # not "failed: ..", so that no completion can say so
OF_THE_JUDGE = ("result", "passed", "base_passed", "beside")  # a row's fields that `score` writes


class Keeper:
    """The program that makes processes for tests and completions: see `keep` in lib/sandbox.py.

    Attributes: confines: whether this machine can hold what completions do.
    """

    def __init__(self, memory):
        """memory: bytes that a completion may have. Raises UserError where none starts."""
        self.memory = memory
        self.orders, theirs = socket.socketpair()
        # Without the user's packages, settings and secrets, and with one seed of hashes: the order
        # of a set must be the one that the canonical solution met.
        needed = ("TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
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
        self.confines = json.loads(answer)

    def ask(self, job):
        """What a process of tests, `run_tests`, finds out about one job: a dict."""
        verdicts, theirs = socket.socketpair()
        settings = json.dumps([self.memory, int(job["limit"]) + 10]).encode()
        socket.send_fds(self.orders, [settings], [theirs.fileno()])
        theirs.close()
        # The tests keep the time. This is for data that keeps them busy, such as numbers that all
        # hash alike.
        verdicts.settimeout(PATIENCE * job["limit"] + 60)
        answer = b""
        with verdicts, contextlib.suppress(OSError):
            verdicts.sendall(json.dumps(job).encode() + b"\n")
            answer = verdicts.makefile("rb").readline()
        self.orders.send(b".")
        return json.loads(answer) if answer.endswith(b"\n") else {"failed": TOOK_DOWN}

    def close(self):
        """Have it end all its processes, then itself."""
        with contextlib.suppress(OSError):
            self.orders.shutdown(socket.SHUT_RDWR)
        self.process.wait()


class Judge:
    """One problem's: what its canonical solution shows, then a verdict for each code.

    Attributes: beside: whether its completions are tested beside their tests; error: how the
    canonical solution fails where expected outputs come from it, or None.
    """

    def __init__(self, keeper, problem, timeout):
        self.keeper = keeper
        self.problem = problem
        self.timeout = min(timeout, A_WEEK)
        self.has_inputs = "base_input" in problem
        self.kinds = KINDS if self.has_inputs else ("test",)
        self.error = None
        code = canonical_code(problem)
        apart, failure = ({}, None) if code is None else self.found(code, False, MANY_SECONDS)
        self.beside = failure is not None
        self.known = apart  # of each kind: what the canonical solution shows
        if self.beside:
            self.known, failed_beside = self.found(code, True, MOST_SECONDS)
            # HumanEval's tests need no solution: it only says how much time a completion may take
            if failed_beside:
                self.beside, self.known = False, {}
                self.error = failure if self.has_inputs else None

    def ask(self, kind, code, beside, limit, expected=None):
        """What the tests of a kind show of a code. They learn no more than they need."""
        names = ("task_id", "entry_point", "prompt", "canonical_solution", "atol", kind)
        problem = {name: self.problem[name] for name in names if name in self.problem}
        return self.keeper.ask({"kind": kind, "problem": problem, "code": code, "beside": beside,
                                "limit": limit, "expected": expected})

    def found(self, code, beside, limit):
        """What the canonical solution shows, by kind, and how it fails, or None."""
        found = {}
        for kind in self.kinds:
            found[kind] = self.ask(kind, code, beside, limit if self.has_inputs else MOST_SECONDS)
            if "failed" in found[kind]:
                return {}, found[kind]["failed"]
        return found, None

    def limit(self, kind):
        """Seconds for the tests of a kind; evalplus's rules, but by the process's own clock."""
        if not self.has_inputs:
            canonical = self.known[kind]["seconds"] if self.known else 0.0
            return max(self.timeout, SLOWER * canonical)
        if self.beside:
            return MOST_SECONDS
        of_inputs = sum(seconds for _, seconds, _ in self.known[kind]["expected"])
        return min(MOST_SECONDS, of_inputs) + 2  # the 2 for defining the function

    def verdict(self, code):
        """"passed" or how it failed, of one code."""
        if self.error:
            return CANONICAL + self.error
        failure = "failed"  # what it is called if it fails now
        for kind in self.kinds:
            expected = self.known.get(kind, {}).get("expected")
            found = self.ask(kind, code, self.beside, self.limit(kind), expected)
            if "failed" in found:
                return f"{failure}: {found['failed']}"
            failure = "passed base, then failed"
        return "passed"


def can_score():
    """Whether this system has the limits that judges put on completions. Windows doesn't."""
    return sys.platform != "win32"


def score(problems, samples, timeout=3.0, memory=4 << 30, unconfined=False):
    """Run the samples, rows {task_id, completion} or {task_id, solution}, on their problems' tests.

    timeout: seconds for HumanEval's `check`, if the canonical solution's time does not ask for
    more; memory: bytes, by default as many as evalplus allows; unconfined: whether to run them on
    a machine that can't hold them, too. Returns the rows with `result`, "passed" or how it failed,
    with `passed`, where the problem has base inputs `base_passed`, and `beside` where the problem
    is tested beside its tests; what else they hold is carried along. Says on stderr which canonical
    solutions fail. Raises UserError for a sample of no problem, and where nothing may run.
    """
    if not can_score():
        raise UserError("completions can't be scored on Windows, which has no POSIX limits: do it "
                        "on Linux, macOS or WSL, or measure --task=bpb")
    codes = defaultdict(list)  # by task_id
    for number, sample in enumerate(samples, 1):
        check_sample(sample, f"sample {number}", problems)
        codes[sample["task_id"]].append(code_of(sample, problems))

    free = queue.SimpleQueue()  # keepers
    workers = min(os.cpu_count(), max(1, len(codes)))
    pool = ThreadPoolExecutor(workers)
    keepers = []
    with tqdm(total=len(samples), desc="running tests", leave=False, disable=None) as progress:
        def judged(task_id):
            """A problem's judge, and an iterator of the verdicts."""
            keeper = free.get()
            try:
                judge = Judge(keeper, problems[task_id], timeout)
                verdicts = []
                for code in codes[task_id]:
                    verdicts.append(judge.verdict(code))
                    progress.update()
            finally:
                free.put(keeper)
            return judge, iter(verdicts)

        try:
            for _ in range(workers):
                keepers.append(Keeper(memory))
                free.put(keepers[-1])
            say_unconfined(keepers[0], unconfined)
            results = dict(zip(codes, pool.map(judged, codes)))
        finally:  # after Ctrl-C the threads find their keepers gone
            for keeper in keepers:
                keeper.close()
            pool.shutdown(cancel_futures=True)
    rows = [with_result(sample, *results[sample["task_id"]]) for sample in samples]
    say_what_to_know(problems, rows)
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


def with_result(sample, judge, verdicts):
    """A sample's row with its result, in place of one that it may have come with."""
    row = {name: value for name, value in sample.items() if name not in OF_THE_JUDGE}
    row["result"] = next(verdicts)
    row["passed"] = row["result"] == "passed"
    if judge.has_inputs:
        row["base_passed"] = row["result"].startswith("passed")
    if judge.beside:
        row["beside"] = True
    return row


def say_what_to_know(problems, rows):
    """A line each on stderr: which problems no sample can pass, and where one could cheat."""
    failures = {}  # in the order of the rows, each once
    for row in rows:
        if row["result"].startswith(CANONICAL):
            cause = row["result"].removeprefix(CANONICAL)
            failures[f"{row['task_id']} ({cause})"] = True
    if failures:
        some = ", ".join([*failures][:5])
        warn_once(f"{len(failures):,} canonical solutions fail, so no sample of their problems "
                  f"passes, such as: {some}")
    for n_beside in count_of_beside(rows).values():
        warn_once(f"{n_beside:,} of {len(problems):,} problems are tested beside their tests, "
                  "where a completion could cheat: apart from them their own solutions do not pass")


# -----------------------------------------------------------------------------
# what went wrong


def count_of_canonical_failures(rows):
    """A result for eval.py's table, {} where all canonical solutions pass."""
    n_failed = len({row["task_id"] for row in rows if row["result"].startswith(CANONICAL)})
    return {"canonical solutions that fail": n_failed} if n_failed else {}


def count_of_beside(rows):
    """A result for eval.py's table, {} where all problems are tested apart from their tests."""
    n_beside = len({row["task_id"] for row in rows if "beside" in row})
    return {"problems tested beside their tests": n_beside} if n_beside else {}


def likely_cause(row, problem):
    """What may be wrong with a completion that failed, in words, or None."""
    field, name = code_field(row), problem["entry_point"]
    code = row[field].lstrip("\n")
    if "```" in code:
        return "have Markdown fences (```): strip them"
    if field == "solution" and not re.search(rf"\b{re.escape(name)}\b", code):
        return ("lack the function that the tests call; if these `solution`s go on from the "
                "prompt, name them `completion`")
    at_margin = code != "" and not code[0].isspace()
    if field == "completion" and at_margin and "def " in problem["prompt"] and "def " not in code:
        return "lost the indentation of their first line: do not strip what a model writes"
    return None


def explain_failures(problems, rows):
    """Say on stderr how scored rows failed: a line a kind, then the likely cause if most agree."""
    failed = [row for row in rows if not row["passed"]]
    if not failed:
        return
    print(f"{len(failed):,} of {len(rows):,} completions failed:", file=sys.stderr)
    kinds = Counter(row["result"].rpartition("failed: ")[2] for row in failed)
    most_common = kinds.most_common(8)
    for kind, count in most_common:
        # a completion may name its exception as it likes, control characters included
        print(f"  {kind if kind.isprintable() else repr(kind)} {count:,}", file=sys.stderr)
    others = len(failed) - sum(count for _, count in most_common)
    if others:
        print(f"  others {others:,}", file=sys.stderr)

    causes = Counter()
    for row in failed:
        causes[likely_cause(row, problems[row["task_id"]])] += 1
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
        has_packed = not {list, dict}.isdisjoint(map(type, x))
        return [unpack(y) for y in x] if has_packed else x
    if not isinstance(x, dict):
        return x
    ((kind, content),) = x.items()
    return MAKERS[kind](unpack(content))


# -----------------------------------------------------------------------------
# the process of a completion

def run_completion(channel):
    """Define a completion's function, then call it on what its tests send by a socket.

    In:  {"code", "entry_point", "token"}, then {"token", "calls": lists of packed [list of
         arguments, dict of keyword arguments]}, each a line.
    Out: a line for the definition and one for each call: the token and the `outcome`. Whoever
         answers before being asked does not know the token.
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
        for packed in request["calls"]:
            reply(request["token"], outcome(call, packed))


def outcome(function, *arguments):
    """What a call gave, as a line for the tests: "returned [1, 2]" or "raised ValueError"."""
    try:
        line = "returned " + json.dumps(function(*arguments))
    except BaseException as error:
        line = f"raised {type(error).__name__}"
    return line.encode("ascii", "replace") + b"\n"


# -----------------------------------------------------------------------------
# the process of the tests

# Bytes that a completion may send before a line ends. A list of a million combinations, which MBPP+
# asks for, takes a good 100 MB.
MOST_REPLY = 1 << 28


class Failed(BaseException):
    """A completion is wrong; the text says how. No Exception, since tests catch these."""


class Completion:
    """A completion's function, as its tests see it: `define`, `call`, `read`.

    Times are the process's own: without that in which it waited for a core. A verdict must not
    depend on how busy the machine is. Time that the process sleeps does count.

    spent: the seconds that the tests have waited for it so far.
    """

    def __init__(self, channel, schedstat):
        self.channel = channel
        self.schedstat = schedstat  # a descriptor of /proc/PID/schedstat, or None
        self.token = ""             # of the last request
        self.waited = 0.0
        self.buffer = bytearray()   # what it has sent and nobody has read
        self.spent = 0.0

    def now(self):
        """Seconds since some moment, by the process's clock."""
        if self.schedstat is not None:
            with contextlib.suppress(OSError, ValueError):  # it has ended, and waits no more
                _, nanoseconds_waited, _ = os.pread(self.schedstat, 100, 0).split()
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

    def define(self, code, entry_point, limit):
        """Have `code` define its function. Raises Failed."""
        self.write({"code": code, "entry_point": entry_point})
        self.read(limit)

    def read(self, limit):
        """What the next call returned, packed, as JSON text.

        Raises Failed if it raised something, and after `limit` seconds by the process's own clock,
        or PATIENCE times that on the wall's.
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
        end_by_process = self.now() + limit
        end_by_wall = time.monotonic() + PATIENCE * limit
        part = b""
        while b"\n" not in part:
            # a process that waited for a core has time left when the wall's clock says it's over
            left = end_by_process - self.now()
            if left < 0 or time.monotonic() > end_by_wall:
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


def run_tests(verdicts, channel, schedstat):
    """Be the process of the tests: read a job, see `Judge.ask`, and write what it shows.

    A line of JSON: {"seconds"}, with {"expected"} of a canonical solution, or {"failed"}: how.
    """
    job = json.loads(verdicts.makefile("rb").readline())
    completion = Completion(channel, schedstat)
    found = {}
    try:
        if job["beside"]:
            test_beside(completion, job)
        elif job["kind"] == "test":
            run_check(completion, job)
        elif job["expected"] is None:
            found["expected"] = expected_outputs(completion, job)
        else:
            check_outputs(completion, job)
    except Failed as failed:
        found["failed"] = str(failed)
    except Exception as error:  # inputs of another form than expected, or an output too large
        found["failed"] = f"{type(error).__name__} in the judge"
    found["seconds"] = completion.spent
    verdicts.sendall(json.dumps(found).encode() + b"\n")


# a problem's test, then what runs it in the process of the completion
BESIDE = """
{code}
{test}
def run_beside(*facts):
    check({entry_point}, *facts)
"""
COMPARE_BESIDE = """
def check(function, problem, kind):
    import sys
    sys.modules["__main__"].compare_beside(function, problem, kind)
"""


def test_beside(completion, job):
    """Have the completion's process run the tests, too. It is asked how that went, as for any call.

    Whoever exits or prints has not answered. But a completion that looks for its tests finds them.
    """
    problem, kind = job["problem"], job["kind"]
    test, facts = problem[kind], []
    if kind in KINDS:
        test, facts = COMPARE_BESIDE, [problem, kind]
    code = BESIDE.format(code=job["code"], test=test, entry_point=problem["entry_point"])
    completion.define(code, "run_beside", job["limit"])
    completion.call_on_each([facts])
    try:
        completion.read(job["limit"] - completion.spent)
    except Failed as failed:
        if str(failed) != "AssertionError":
            raise
        raise Failed("wrong answer") from None


# -----------------------------------------------------------------------------
# HumanEval: a function `check` that calls the completion's


def surroundings(problem):
    """What the tests find beside the function, a dict: what the prompt defines, such as helpers.

    It is made with the canonical solution, as a completion's code never runs here; without a usable
    one with an empty function.
    """
    for body in (problem.get("canonical_solution") or "", "    pass\n"):
        scope = {}
        with contextlib.suppress(Exception):
            exec(problem["prompt"] + body, scope)
            return scope
    return {}


# What tests may expect to be raised. They see anything else as `Failed`, an AssertionError too,
# lest it be taken for one of their own.
EXPECTED = (
    ArithmeticError, AttributeError, Exception, IndexError, KeyError, LookupError, NameError,
    NotImplementedError, OSError, OverflowError, RecursionError, RuntimeError, StopIteration,
    TypeError, ValueError, ZeroDivisionError)


def run_check(completion, job):
    """Run HumanEval's `check` here, on a stand-in that has the function called in its process."""
    problem, limit = job["problem"], job["limit"]

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
            for kind in EXPECTED:
                if kind.__name__ == str(failed):
                    raise kind from None
            raise

    completion.define(job["code"], problem["entry_point"], limit)
    try:
        scope = surroundings(problem)
        scope[problem["entry_point"]] = candidate
        exec(problem["test"], scope)
        scope["check"](candidate)
    except Failed:
        raise
    except AssertionError:
        raise Failed("wrong answer") from None
    except BaseException as error:
        raise Failed(type(error).__name__) from None


# -----------------------------------------------------------------------------
# evalplus's special cases, of its version 0.3.1 (evalplus/data/mbpp.py, evalplus/eval/__init__.py)
#
# JSON has made lists of MBPP+'s tuples and sets, strings of its complex numbers. Where a problem's
# arguments have tuples: (depths, which arguments, numbers of the problems). Depths "1": the
# argument itself, "01": what its list holds, "11": both.
ALL = range(9)
TUPLES = (
    ("1", ALL, (2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616,
                630, 726, 740, 744, 809)),
    ("01", ALL, (63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780)),
    ("11", ALL, (259, 401, 445)),
    ("01", [0], (75, 413, 444, 753)),
    ("1", [1], (106, 750)),
    ("1", [0], (250, 307, 405, 446, 617, 720, 763, 808)),
)


def to_tuples(x, depths):
    """The list x with tuples at the depths where `depths` has a 1."""
    if len(depths) > 1:
        x = [to_tuples(y, depths[1:]) for y in x]
    return tuple(x) if depths[0] == "1" else x


def all_to_tuples(x, depth=99):
    """x with tuples in place of all lists, down to a depth."""
    if depth == 0 or not isinstance(x, list):
        return x
    return tuple(all_to_tuples(y, depth - 1) for y in x)


def restore(task_id, row):
    """A row of arguments of a problem, as its solutions expect them."""
    if not re.fullmatch(r"Mbpp/\d+", task_id):
        return row
    number = int(task_id.removeprefix("Mbpp/"))
    if number == 115:  # sets, an empty one of which had been written as {}
        return [[set(x) if isinstance(x, list) and x else {} for x in row[0]]]
    if number == 124:
        return [float(row[0]), complex(row[1])]
    if number == 252:
        return [complex(row[0])]
    if number == 278:  # lists inside the inner tuples stay
        return [tuple(all_to_tuples(x, 1) for x in row[0])]
    if number in (580, 615, 791):
        return [all_to_tuples(x) for x in row]
    if number == 722:
        return [{name: tuple(x) for name, x in row[0].items()}, *row[1:]]
    for depths, places, problems in TUPLES:
        if number in problems:
            row = [to_tuples(x, depths) if place in places else x for place, x in enumerate(row)]
    return row


def inputs_of(problem, kind):
    return [restore(problem["task_id"], row) for row in problem[kind]]


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
        return out == want if isinstance(out, bool) else (out is not None) == want
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


def known_answer(problem, out):
    """What is kept of a canonical solution's output."""
    is_mbpp = problem["task_id"].startswith("Mbpp/")
    if is_mbpp and problem["entry_point"] in ANSWERS:
        return out is not None
    return out


# -----------------------------------------------------------------------------
# HumanEval+ and MBPP+: outputs compared with the canonical solution's


def canonical_code(problem):
    """The canonical solution as a program; None where there is none."""
    solution = problem.get("canonical_solution")
    return f"{problem['prompt']}{solution}\n" if isinstance(solution, str) else None


def tolerance(out, atol):
    """The tolerance from an expected output on; as in evalplus, no float is compared exactly."""
    items = [out]
    if isinstance(out, (list, tuple)) and out:
        items = out
    if atol == 0 and all(isinstance(x, float) for x in items):
        return 1e-6
    return atol


def expected_outputs(completion, job):
    """What the canonical solution gives on the inputs of one of KINDS.

    Returns for each input [output as JSON text, seconds that others may take, tolerance]. Raises
    Failed.
    """
    problem = job["problem"]
    inputs = inputs_of(problem, job["kind"])
    atol = problem["atol"]
    expected = []
    completion.define(job["code"], problem["entry_point"], job["limit"])
    completion.call_on_each(inputs)
    for _ in inputs:
        before = completion.spent
        text = completion.read(min(MOST_SECONDS, job["limit"] - before))
        if NO_PLAIN_DATA.search(text):
            raise Failed("an output that is no plain data")
        out = unpack(json.loads(text))
        if known_answer(problem, out) is not out:
            text = json.dumps(known_answer(problem, out))
        atol = tolerance(out, atol)
        expected.append([text, max(SECOND, SLOWER * (completion.spent - before)), atol])
    return expected


def check_outputs(completion, job):
    """Run a code on the inputs of one of KINDS. Raises Failed if an output is not as expected."""
    problem, limit = job["problem"], job["limit"]
    inputs = inputs_of(problem, job["kind"])
    completion.define(job["code"], problem["entry_point"], limit)
    completion.call_on_each(inputs)
    # One at a time is read, so that each input has its own limit.
    for arguments, (want, seconds, atol) in zip(inputs, job["expected"]):
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


def compare_beside(function, problem, kind):
    """The same, in the process of the completion: outputs that are no plain data, or too large."""
    scope = {}
    exec(canonical_code(problem), scope)
    canonical = scope[problem["entry_point"]]
    atol = problem["atol"]
    for arguments in inputs_of(problem, kind):
        want = canonical(*copy.deepcopy(arguments))
        atol = tolerance(want, atol)
        out = function(*copy.deepcopy(arguments))
        assert accepts(problem, arguments, out, known_answer(problem, want), atol)


if IS_PROGRAM:
    keep(socket.socket(fileno=0), run_tests, run_completion)
