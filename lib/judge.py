"""
The judge: a program that runs completions on their problems' tests and says which pass.

lib/scoring.py starts it, without the user's settings, sends it jobs and reads its verdicts. It runs
on the standard library alone (numpy only where outputs are compared with a tolerance).

In, two lines of JSON for a job: {"problem", "codes", "timeout", "memory"}, and what is known of
the problem's canonical solution, null at first (see `canonical_results`). Out: at first a line
that says what could not be isolated; then for each job a line with what is known now, and one for
each code: "passed", "passed base, then failed: ..." or "failed: ...".
"""
import builtins
import contextlib
import functools
import gc
import json
import math
import os
import random
import re
import resource
import select
import signal
import socket
import stat
import struct
import sys
import time
# What completions import most: their processes are copies of this one, and find it loaded.
import bisect, collections, copy, heapq, itertools, operator, string, typing

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # `python -P` leaves it out
from sandbox import (PR_SET_CHILD_SUBREAPER, PR_SET_DUMPABLE, PR_SET_PDEATHSIG, SCRATCH, confine,
                     drop_privileges, isolate, pack, set_process, unpack, where_possible)
del sys.path[0]  # completions find Python's own modules only

KINDS = ("base_input", "plus_input")  # the inputs of HumanEval+ and MBPP+: the old tests, the new

# Limits, in seconds. evalplus's for an input: so many times the canonical solution's time, but at
# least a second.
SLOWER = 4
SECOND = 1.0
MOST_SECONDS = 60.0    # evalplus's for all inputs together; also a canonical solution's, for one
MANY_SECONDS = 600.0   # a canonical solution's for all inputs
PATIENCE = 10          # on the wall's clock a limit is so many times as long
A_YEAR = 365 * 86400   # the longest alarm; alarm(2) cannot count much further
# Bytes that a completion may send before a line ends. A list of a million combinations, which MBPP+
# asks for, takes a good 100 MB.
MOST_REPLY = 1 << 28
OWN_MEMORY = 1 << 32   # bytes that the judge itself may use


class Failed(BaseException):
    """A completion is wrong; the text says how. No Exception, since tests catch these."""


def watchdog(seconds):
    """Have this process killed if it is still running in `seconds`, unless it asks again.

    What a completion sends is only data, but data can be made to keep a judge busy, such as a set
    of numbers that all hash alike. The verdict is then that the completion took the judge down.
    `seconds` 0: not any more.
    """
    signal.alarm(int(min(seconds, A_YEAR)))


# -----------------------------------------------------------------------------
# getting ready


class Host:
    """What the judge has got ready before its first job.

    Attributes: missing: what could not be isolated, a list of words; orders: a socket to the
    process that makes processes for completions, see `confine`.
    """

    def __init__(self):
        # A descriptor of /proc as it was, for the clocks: the new root has no /proc.
        self.proc = None
        with contextlib.suppress(OSError):
            self.proc = os.open("/proc", os.O_RDONLY)
        os.environ.clear()  # so that a completion reads no secrets there
        os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
        self.missing = isolate()
        if "file system" not in self.missing:
            os.environ.update(HOME=SCRATCH, TMPDIR=SCRATCH)
        self.python_for_all = python_for_all()

        set_process(PR_SET_DUMPABLE, 0)  # its memory is closed to others
        self.orders = start_confining(isolated="processes" not in self.missing)

        # From here on this process has no rights: it runs tests, which come from a file.
        drop_privileges(self.unused_uid(os.getpid()))
        set_process(PR_SET_PDEATHSIG, signal.SIGKILL)  # not to outlive who started it
        with contextlib.suppress(ValueError, OSError):  # macOS has no such limit
            resource.setrlimit(resource.RLIMIT_AS, (OWN_MEMORY, OWN_MEMORY))

    def unused_uid(self, number):
        """A user id that nobody has, made of `number`, which is below 2**30.

        It is root's where only root can read Python's files: others could import nothing.
        """
        return number | 1 << 30 if self.python_for_all else 0


def python_for_all():
    """Whether any user can get at Python's files, and at those of a virtual environment."""
    return is_for_all(os.path.dirname(os.__file__)) and is_for_all(sys.prefix)


def is_for_all(folder):
    """Whether a folder and all above it let others through."""
    while os.stat(folder).st_mode & stat.S_IXOTH:
        if folder == "/":
            return True
        folder = os.path.dirname(folder)
    return False


def start_confining(isolated):
    """Start the process that confines completions. Returns a socket to it."""
    orders, theirs = socket.socketpair()
    if os.fork() == 0:  # from here on the other process, which never returns
        orders.close()
        if not isolated:
            set_process(PR_SET_CHILD_SUBREAPER, 1)  # orphans become its children
        compile("0", "", "eval")  # its first call costs a millisecond, which every fork would pay
        gc.freeze()  # so that no fork has to copy memory only because it was looked at
        confine(theirs, isolated)
    theirs.close()
    return orders


# -----------------------------------------------------------------------------
# a completion's function, in its process


class ProcessClock:
    """Tells the time as a process has had it: without that in which it waited for a core.

    A verdict must not depend on how busy the machine is. Time that the process sleeps does count.
    """

    def __init__(self, host, pid):
        self.waited = 0.0
        self.schedstat = None
        with contextlib.suppress(OSError):  # where there is no such file, no waiting is seen
            self.schedstat = os.open(f"{pid}/schedstat", os.O_RDONLY, dir_fd=host.proc)

    def now(self):
        """Seconds since some moment."""
        if self.schedstat is not None:
            with contextlib.suppress(OSError, IndexError):  # it has ended, and waits no more
                _, nanoseconds_waited, _ = os.pread(self.schedstat, 100, 0).split()
                self.waited = int(nanoseconds_waited) / 1e9
        return time.monotonic() - self.waited

    def close(self):
        if self.schedstat is not None:
            os.close(self.schedstat)


class Box:
    """A completion's function, in a process of its own, which lives as long as the `with` block.

    spent: the seconds that the judge has waited for it so far, by its ProcessClock.
    """

    def __init__(self, host, memory, seconds):
        """memory: bytes; seconds: of computing, after which the system ends the process."""
        self.orders = host.orders
        self.buffer = bytearray()  # what it has sent and the judge has not read
        self.spent = 0.0
        self.channel, theirs = socket.socketpair()
        with where_possible():  # Linux then says which process has written, see `receive_pid`
            self.channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        settings = [memory, int(seconds), host.unused_uid(random.getrandbits(29))]
        socket.send_fds(self.orders, [json.dumps(settings).encode()], [theirs.fileno()])
        theirs.close()
        self.clock = ProcessClock(host, self.receive_pid())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Have the process killed, and all that it started, before the next one is made."""
        self.clock.close()
        self.channel.close()
        self.orders.send(b".")

    def receive_pid(self):
        """Wait for the process's first byte, with which Linux says whose it is. 0 if unknown."""
        _, credentials, _, _ = self.channel.recvmsg(1, 64)
        if not credentials:
            return 0
        _, _, data = credentials[0]
        pid, _, _ = struct.unpack("iII", data[:12])  # with the ids of its user and group
        return pid

    def write(self, message):
        """Send a line of JSON. Raises Failed."""
        try:
            self.channel.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            raise Failed("exited") from None

    def define(self, problem, code):
        """Have `code` define its function; the first `read` says how that went."""
        self.write({"code": code, "entry_point": problem["entry_point"]})

    def call(self, inputs):
        """Have the function called on each of `inputs`, lists of arguments. A `read` for each."""
        self.write([pack(arguments) for arguments in inputs])

    def read(self, limit):
        """What the next call returned, packed, as JSON text.

        Raises Failed if it raised something, and after `limit` seconds by the process's own clock,
        or PATIENCE times that on the wall's.
        """
        watchdog(PATIENCE * limit + 30)  # later than the limits below, which should do
        # Often the answer is there: the process goes on while the judge compares the one before.
        end = self.buffer.find(b"\n")
        if end < 0:
            started = self.clock.now()
            self.receive_line(limit)
            took = self.clock.now() - started
            # Linux counts a wait when it is over, so one from before may be counted now.
            self.spent += max(0.0, took)
            end = self.buffer.find(b"\n")
        line = bytes(self.buffer[:end])
        del self.buffer[:end + 1]  # at the front of a bytearray this copies nothing
        watchdog(20)  # the judge goes on to work with what it got
        # "returned [1, 2]" or "raised ValueError", if the process is what it should be
        outcome, _, text = line.decode("ascii", "replace").partition(" ")
        if outcome != "returned":
            raise Failed(text[:100])
        return text

    def receive_line(self, limit):
        """Add to the buffer until there is the end of a line in it. Raises Failed."""
        end_by_process = self.clock.now() + limit
        end_by_wall = time.monotonic() + PATIENCE * limit
        part = b""
        while b"\n" not in part:
            # a process that waited for a core has time left when the wall's clock says it's over
            left = end_by_process - self.clock.now()
            if left < 0 or time.monotonic() > end_by_wall:
                raise Failed("timed out")
            readable, _, _ = select.select([self.channel], [], [], left + 0.001)
            if readable:
                part = self.receive()

    def receive(self):
        """Add to the buffer what is there. Returns it. Raises Failed."""
        part = b""
        with contextlib.suppress(OSError):  # a process that is gone
            part = self.channel.recv(1 << 20)
        self.buffer += part
        if not part:
            raise Failed("exited")
        if len(self.buffer) > MOST_REPLY:
            raise Failed("too much output")
        return part


# -----------------------------------------------------------------------------
# MBPP+'s inputs
#
# JSON has made lists of their tuples and sets, strings of their complex numbers. The rules by
# problem are evalplus 0.3.1's (evalplus/data/mbpp.py).

# where a problem's arguments have tuples: (depths, arguments or all, numbers of the problems)
#   "1" the argument itself, "01" what its list holds, "11" both
TUPLES = (
    ("1", "all", (2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616,
                  630, 726, 740, 744, 809)),
    ("01", "all", (63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780)),
    ("11", "all", (259, 401, 445)),
    ("01", [0], (75, 413, 444, 753)),
    ("1", [1], (106, 750)),
    ("1", [0], (250, 307, 405, 446, 617, 720, 763, 808)),
)


def to_tuples(x, depths):
    """The list x with tuples at the depths where `depths` has a 1."""
    if len(depths) > 1:
        x = [to_tuples(y, depths[1:]) for y in x]
    return tuple(x) if depths[0] == "1" else x


def to_tuples_everywhere(x):
    return tuple(map(to_tuples_everywhere, x)) if isinstance(x, list) else x


def restore_all(row):
    """The row of arguments with tuples everywhere: of 580, 615, 791."""
    return [to_tuples_everywhere(x) for x in row]


def restore_115(row):
    """A list of sets, an empty one of which had been written as {}."""
    sets = [set(x) if isinstance(x, list) and x else {} for x in row[0]]
    return [sets]


def restore_124(row):
    return [float(row[0]), complex(row[1])]


def restore_252(row):
    return [complex(row[0])]


def restore_278(row):
    """A tuple with tuples in it, in which lists stay lists."""
    items = [tuple(x) if isinstance(x, list) else x for x in row[0]]
    return [tuple(items)]


def restore_722(row):
    """A dict of tuples and more arguments."""
    students = {name: tuple(x) for name, x in row[0].items()}
    return [students, *row[1:]]


RESTORERS = {
    115: restore_115,
    124: restore_124,
    252: restore_252,
    278: restore_278,
    580: restore_all,
    615: restore_all,
    722: restore_722,
    791: restore_all,
}


def restore_tuples(row, depths, places):
    """The row of arguments, with tuples in the arguments at `places`."""
    restored = []
    for place, x in enumerate(row):
        chosen = places == "all" or place in places
        restored.append(to_tuples(x, depths) if chosen else x)
    return restored


def restore(task_id, inputs):
    """A problem's inputs, rows of arguments, as its solutions expect them.

    Inputs of other problems than MBPP's pass through unchanged.
    """
    match = re.fullmatch(r"Mbpp/(\d+)", task_id)
    if not match:
        return inputs
    number = int(match[1])
    if number in RESTORERS:
        return [RESTORERS[number](row) for row in inputs]
    for depths, places, numbers in TUPLES:
        if number in numbers:
            return [restore_tuples(row, depths, places) for row in inputs]
    return inputs


# -----------------------------------------------------------------------------
# whether an output is right: evalplus 0.3.1 (evalplus/eval/__init__.py)
#
# Each of these says whether `out` is right where the canonical solution gave `want`.


def equal(arguments, out, want, atol):
    return out == want


def any_answer(arguments, out, want, atol):
    return True


def equal_or_0(arguments, out, want, atol):
    return out == want or out == 0


def pyramid_surface(arguments, out, want, atol):
    """The height of a square pyramid may also be meant along its axis."""
    base, height = arguments
    slant_height = math.sqrt((base / 2) ** 2 + height ** 2)
    by_axis = round(base ** 2 + 2 * base * slant_height)
    return out == want or abs(out - by_axis) <= atol


def digit_distance(arguments, out, want, atol):
    """The shorter of two numbers may also be filled up with zeros on the left."""
    a, b = map(str, arguments)
    digits = zip(a.zfill(len(b)), b.zfill(len(a)))
    return out == want or out == sum(abs(int(x) - int(y)) for x, y in digits)


def same_set(arguments, out, want, atol):
    """Order and repeats don't matter."""
    return set(out) == set(want)


def answers_or_not(arguments, out, want, atol):
    """Only whether there is an answer is asked for; `want` is that, see `expected_outputs`."""
    if isinstance(out, bool):
        return out == want
    return (out is not None) == want


def is_root(arguments, out, want, atol):
    """HumanEval/32 asks for a zero of a polynomial; any will do."""
    (coefficients,) = arguments
    return abs(sum(c * math.pow(out, i) for i, c in enumerate(coefficients))) <= atol


MBPP_ORACLES = {
    "are_equivalent": any_answer,
    "sum_div": equal_or_0,
    "surface_Area": pyramid_surface,
    "digit_distance_nums": digit_distance,
    "similar_elements": same_set,
    "find_char_long": same_set,
    "common_in_nested_lists": same_set,
    "extract_singly": same_set,
    "larg_nnum": same_set,
    "intersection_array": same_set,
    "find_dissimilar": same_set,
    "Diff": same_set,
    "check_str": answers_or_not,
    "text_match_three": answers_or_not,
    "text_starta_endb": answers_or_not,
}


def oracle_of(problem):
    """The function that says whether an output is right, and most often `equal`."""
    is_mbpp = problem["task_id"].startswith("Mbpp/")
    if is_mbpp:
        return MBPP_ORACLES.get(problem["entry_point"], equal)
    return is_root if problem["entry_point"] == "find_zero" else equal


def accepts(problem, arguments, out, want, atol):
    """Whether evalplus takes `out` where the canonical solution gave `want`.

    atol: absolute tolerance. Raises what comparing the two may raise.
    """
    oracle = oracle_of(problem)
    right = oracle(arguments, out, want, atol)
    if right or atol == 0 or oracle is is_root:
        return right
    return is_close(out, want, atol)


def is_close(out, want, atol):
    """Whether two numbers, or lists of numbers, of the same type and length are nearly equal."""
    if type(out) is not type(want):
        return False
    if isinstance(want, (list, tuple)) and len(out) != len(want):
        return False
    import numpy  # takes a tenth of a second, and few problems need it
    return bool(numpy.allclose(out, want, rtol=1e-7, atol=atol))


# -----------------------------------------------------------------------------
# HumanEval+ and MBPP+: outputs compared with the canonical solution's


def canonical_code(problem):
    return problem["prompt"] + problem["canonical_solution"] + "\n"


def is_floats(out):
    """Whether `out` is a float, or a list or tuple of floats."""
    if isinstance(out, (list, tuple)):
        return bool(out) and all(isinstance(x, float) for x in out)
    return isinstance(out, float)


def expected_outputs(host, problem, kind, memory):
    """What the canonical solution gives on the inputs of one of KINDS.

    Returns for each input [output as JSON text, seconds, tolerance]. Raises Failed.
    """
    inputs = restore(problem["task_id"], problem[kind])
    atol = problem["atol"]
    expected = []
    with Box(host, memory, MANY_SECONDS + 10) as box:
        box.define(problem, canonical_code(problem))
        box.read(MANY_SECONDS)
        box.call(inputs)
        for _ in inputs:
            before = box.spent
            text = box.read(min(MOST_SECONDS, MANY_SECONDS - before))
            out = unpack(json.loads(text))
            if oracle_of(problem) is answers_or_not:
                text = json.dumps(out is not None)
            if atol == 0 and is_floats(out):
                atol = 1e-6  # as in evalplus, for this input and all later ones
            expected.append([text, box.spent - before, atol])
    return expected


def check_outputs(host, problem, code, kind, memory, expected):
    """Run `code` on the inputs of one of KINDS. Raises Failed if an output is not as expected."""
    inputs = restore(problem["task_id"], problem[kind])
    # evalplus's rules, but with the process's own clock
    limits = [max(SECOND, SLOWER * seconds) for _, seconds, _ in expected]
    total = min(MOST_SECONDS, sum(limits)) + 2  # the 2 for defining the function
    with Box(host, memory, total + 10) as box:
        box.define(problem, code)
        box.read(total)
        box.call(inputs)
        # One at a time is read, so that each input has its own limit.
        for arguments, limit, (want, _, atol) in zip(inputs, limits, expected):
            text = box.read(min(limit, total - box.spent))
            # The same text is the same value; only another one has to be looked at.
            if text != want and not accepts_text(problem, arguments, text, want, atol):
                raise Failed("wrong answer")


def accepts_text(problem, arguments, text, want, atol):
    """`accepts`, of JSON texts; what can't be compared is wrong."""
    try:
        out = unpack(json.loads(text))
        return accepts(problem, arguments, out, unpack(json.loads(want)), atol)
    except Exception:
        return False


# -----------------------------------------------------------------------------
# HumanEval: a function `check` that calls the completion's


@functools.lru_cache(2)
def compiled(source):
    """Made once for all of a problem's completions: the tests, and what stands beside them."""
    return compile(source, "test", "exec")


def surroundings(problem):
    """What the tests find beside the function, a dict: what the prompt defines, such as helpers.

    It is made with the canonical solution, as a completion's code never runs here; and anew for
    each completion, since tests may change it.
    """
    scope = {}
    solution = problem.get("canonical_solution") or ""
    with contextlib.suppress(Exception):
        exec(compiled(problem["prompt"] + solution), scope)
    return scope


def like_the_original(failed):
    """What tests should see raised where a function `failed`: the built-in exception that it
    raised, which they may expect; else (it timed out, say) `failed`, which no `except Exception`
    catches.

    An AssertionError is `failed`, too, lest it be taken for one of the tests' own.
    """
    kind = getattr(builtins, str(failed), None)
    is_exception = isinstance(kind, type) and issubclass(kind, Exception)
    if not is_exception or kind in (AssertionError, ExceptionGroup):  # a group needs arguments
        return failed
    return kind.__new__(kind)  # without __init__, which may need arguments


def run_check(host, problem, code, memory, limit):
    """Run HumanEval's `check` here, on a stand-in that has the function called in its process.

    limit: seconds for all calls together. Returns the seconds it took. Raises Failed.
    """
    with Box(host, memory, limit + 10) as box:
        box.define(problem, code)

        # What the tests call in place of the function: it only sends arguments and returns answers.
        def candidate(*arguments):
            box.call([list(arguments)])
            try:
                return unpack(json.loads(box.read(limit - box.spent)))
            except Failed as failed:
                raise like_the_original(failed) from None

        watchdog(PATIENCE * limit + 30)
        try:
            scope = surroundings(problem)
            scope[problem["entry_point"]] = candidate
            box.read(limit)  # meanwhile the function was defined there
            exec(compiled(problem["test"]), scope)
            scope["check"](candidate)
        except Failed:
            raise
        except AssertionError:
            raise Failed("wrong answer") from None
        except BaseException as error:
            raise Failed(type(error).__name__) from None
    return box.spent


# -----------------------------------------------------------------------------
# verdicts


def canonical_results(host, problem, memory):
    """What a judge has to know of a problem's canonical solution before it can judge others.

    With inputs: {"base_input": ..., "plus_input": ...}, see `expected_outputs`. With a `check`:
    {"seconds": ...}, 0 if there is no canonical solution. Where it fails: {"error": ...}.
    """
    try:
        if "base_input" in problem:
            return {kind: expected_outputs(host, problem, kind, memory) for kind in KINDS}
        if problem.get("canonical_solution") is None:
            return {"seconds": 0.0}
        code = canonical_code(problem)
        return {"seconds": run_check(host, problem, code, memory, MOST_SECONDS)}
    except Failed as error:
        return {"error": str(error)}
    except Exception as error:  # inputs of another form than expected, or an output too large
        return {"error": f"{type(error).__name__} in the judge"}


def verdict(host, job, code, known):
    """"passed" or how it failed, of one code."""
    problem, memory = job["problem"], job["memory"]
    failure = "failed"  # what it is called if it fails now
    try:
        if "base_input" in problem:
            check_outputs(host, problem, code, "base_input", memory, known["base_input"])
            failure = "passed base, then failed"
            check_outputs(host, problem, code, "plus_input", memory, known["plus_input"])
        else:
            limit = max(job["timeout"], SLOWER * known["seconds"])
            run_check(host, problem, code, memory, limit)
    except Failed as error:
        return f"{failure}: {error}"
    return "passed"


def own_streams():
    """(in, out): where jobs come from and verdicts go to.

    What tests and prompts read and print is something else from here on: the null device.
    """
    jobs, verdicts = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):
        os.dup2(null, standard)
    return jobs, verdicts


def main():
    jobs, verdicts = own_streams()

    def tell(message):
        """Write a line of JSON for lib/scoring.py."""
        watchdog(0)  # no completion's data is worked on until the next `read`
        print(json.dumps(message), file=verdicts, flush=True)

    host = Host()
    tell(host.missing)
    for line in jobs:
        job = json.loads(line)
        known = json.loads(jobs.readline())
        # It comes back unchanged if it was known: whoever asks need not tell the two cases apart.
        known = known or canonical_results(host, job["problem"], job["memory"])
        tell(known)
        if "error" in known:
            continue
        for code in job["codes"]:
            tell(verdict(host, job, code, known))
    host.orders.close()  # by which the other process knows that it is over
    os.wait()


if __name__ == "__main__":
    main()
