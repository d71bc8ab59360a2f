"""
How good is a run, on raw bytes? Generation, scoring, metrics, in that order.

- bpb:       bits per byte of held-out text. --context and --stride slide a window over whole documents.
- pass:      pass@k of raw-byte completions, by running them on a problem file's tests (Chen et al. 2021, arXiv
             2107.03374). HumanEval's format, or that of HumanEval+ and MBPP+ (Liu et al. 2023, arXiv 2305.01210).
- robust:    pass@1 when prompts are perturbed in four ways (ReCode: Wang et al. 2022, arXiv 2212.10264), and bits per
             byte under byte noise.
- translate: the right solution is given in one view, the model writes it in the other (the paper's oracle translation).
- facts:     how many of tinycode's facts come back from a raw prompt: those seen raw too, and those seen compressed only.

With --view=comp all but translate read and write the proxy's symbols instead: the tokenizer baseline.

    python eval.py                                       the newest run under out/: bpb, pass, facts
    python eval.py out/neural out/none --task=all        side by side; what was measured before is read, not run again
    python eval.py --samples=samples.jsonl --problems=HumanEval.jsonl.gz       scores a file; needs no run
"""
import ast
import builtins
import collections
import collections.abc
import contextlib
import ctypes
import dataclasses
import decimal
import fractions
import functools
import gc
import gzip
import hashlib
import inspect
import json
import keyword
import math
import numbers
import os
import random
import re
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from mix import (BYTE0, CACHE, COMP, END_COMP, END_RAW, HERE, PROXY0, RAW, Corpus, Mixer, MixOptions, between_sentinels,
                 prepare, read_jsonl)
from model import KVCache, UserError, command_line, expect, expect_device, flag, nearest, next_tail, pack_tails
from proxies import load_proxy
from sample import complete, load_model, newest_run, pick, sentinels_of

TINYCODE = HERE / "data" / "tinycode"
# What ends a function: the stop sequences of the HumanEval paper, and decorators. Where the prompt has no `def` yet, as in
# MBPP, the function is still to come: what ends it there is evalplus's.
STOPS = (b"\nclass", b"\ndef", b"\n#", b"\nif", b"\nprint", b"\n@")
STOPS_WITHOUT_DEF = (b'\n"""', b"\nassert", b"\nif __name__", b"\nprint(", b"\ndef main(")
ROWS_AT_ONCE = 256


def write_file(path, data):
    """Bytes to a temporary name, then renamed. Raises UserError."""
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as f:
            f.write(data)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; expected a place that can be written") from None

# -----------------------------------------------------------------------------
# generation


def read_problems(path):
    """Problems by task_id; tinycode's where `path` is empty. Raises UserError for a file that is not in HumanEval's,
    HumanEval+'s or MBPP+'s format."""
    path, problems = path or TINYCODE / "problems.jsonl", {}
    for number, row in read_jsonl(path):
        missing = {"task_id", "prompt", "entry_point"} - row.keys()
        missing |= ({"canonical_solution", "plus_input", "atol"} if "base_input" in row else {"test"}) - row.keys()
        if missing:
            raise UserError(f"{path}, line {number}: expected a problem, but it has no {', '.join(sorted(missing))}")
        problems[row["task_id"]] = row
    if not problems:
        raise UserError(f"{path}: no problems in it")
    return problems


@torch.inference_mode()
def write_view(model, prompts, first, closer, spelled, temperature=0.0, seed=0, begins=None):
    """Go on from prompts (symbols, tails) that end inside a view, in its symbols only, up to `closer` or the end of the
    context: a list of symbols less `first` for each. spelled: the bytes of each symbol, None if it stands for none.
    begins: for each prompt the bytes that what follows has to begin with, those of one symbol."""
    device, n, size = model.embed.weight.device, len(spelled), model.config.block_size
    generator = torch.Generator(device).manual_seed(seed)
    lengths = torch.tensor([len(symbols) for symbols, _ in prompts])
    idx = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.long)
    tails = torch.zeros_like(idx)
    for row, (symbols, tail) in enumerate(prompts):
        idx[row, :len(symbols)], tails[row, :len(symbols)] = torch.from_numpy(symbols), torch.from_numpy(tail)
    cache = KVCache(model.config, len(prompts), size, device)
    states = model.states(idx.to(device), tails.to(device), cache=cache)
    logits = model.logits(states[torch.arange(len(prompts)), lengths - 1])
    cache.pos, written = lengths.to(device), [[] for _ in prompts]
    tail, live = [int(tail[-1]) for _, tail in prompts], [True] * len(prompts)
    for position in range(int(lengths.max()), size):
        choices = torch.cat((logits[:, first:first + n], logits[:, closer, None]), 1)
        if begins and position == lengths.max():
            wrong = {begin: torch.tensor([not text.startswith(begin) for text in (*spelled, b"")]) for begin in set(begins)}
            choices = choices.masked_fill(torch.stack([wrong[begin] for begin in begins]).to(device), -torch.inf)
        choice = pick(choices, temperature, 0, 1.0, generator).tolist()
        live = [goes_on and symbol < n for goes_on, symbol in zip(live, choice)]
        if not any(live):
            break
        choice = [symbol if goes_on else 0 for goes_on, symbol in zip(live, choice)]
        for row, symbol in enumerate(choice):
            if live[row]:
                written[row].append(symbol)
                for byte in spelled[symbol] or b"":
                    tail[row] = next_tail(tail[row], byte)
        new, new_tail = (torch.tensor(values, device=device)[:, None] for values in (choice, tail))
        logits = model.logits(model.states(new + first, new_tail, cache=cache)[:, -1])
        cache.pos = cache.pos + 1
    return written


def complete_through(model, proxy, spelled, prompts, n=1, stops=(), max_new=256, temperature=0.8, seed=0):
    """`complete`, but reading and writing the proxy's symbols: what a tokenizer model does. The last symbol of a prompt is
    written again, as any that begins with the same bytes ("token healing"), since the text might have been cut elsewhere had
    it gone on. A prompt has at most half of the context."""
    shown, begins, texts = [], [], []
    for prompt in prompts:
        symbols = proxy.encode(prompt)
        symbols, tails = between_sentinels("comp", np.frombuffer(prompt, np.uint8), symbols, proxy.n_bytes)
        kept = slice(max(1, len(symbols) - model.config.block_size // 2), -2)
        shown += [(np.append(symbols[:1], symbols[kept]), np.append(tails[:1], tails[kept]))] * n
        begins += [spelled[symbols[-2] - PROXY0]] * n
    for begin, symbols in zip(begins, write_view(model, shown, PROXY0, END_COMP, spelled, temperature, seed, begins)):
        text = proxy.decode(symbols)[len(begin):][:max_new]
        texts.append(text[:min((text.find(stop) for stop in stops if stop in text), default=len(text))])
    return [texts[i:i + n] for i in range(0, len(texts), n)]


def writer(model, trained, options, run):
    """What completes prompts in the view that is asked for: `complete`, but for the model. Raises UserError."""
    if options.view == "raw":
        return functools.partial(complete, model, sentinels=sentinels_of(trained.mode))
    path = Path(run or "") / "proxy.pt"
    proxy = load_proxy(path) if path.exists() else None
    if proxy is None or proxy.n_bytes is None or trained.mode == "vanilla":
        raise UserError(f"--view=comp: {run} can't write through its proxy; expected a run with sentinels and a proxy "
                        "whose symbols stand for known bytes")
    return functools.partial(complete_through, model, proxy, proxy.spellings())


def complete_problems(write, prompts, n, options, temperature, keep=None):
    """{task_id: n completions, strings} of `prompts`, {task_id: prompt}. write: what `writer` gives.

    keep: what the names of the model's files begin with. Finished completions are added to one, and read from it when the
    same call is made again, after an interruption or for another score.
    """
    about = json.dumps([prompts, n, temperature, options.max_new, options.seed, options.view])
    path = keep and Path(f"{keep}-{hashlib.sha256(about.encode()).hexdigest()[:12]}.jsonl")
    done = defaultdict(list)
    if path and path.exists():
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError):  # the last line may be half of one
                row = json.loads(line)
                done[row["task_id"]] = (done[row["task_id"]] + [row["completion"]])[-n:]
    has_def = all(re.search(r"^ *(async )?def ", prompt, re.M) for prompt in prompts.values())
    ids, at_once = sorted(prompts, key=lambda task_id: len(prompts[task_id])), max(1, ROWS_AT_ONCE // n)
    for start in tqdm(range(0, len(ids), at_once), desc="completing", leave=False):
        chosen = ids[start:start + at_once]
        if all(len(done[i]) == n for i in chosen):
            continue
        texts = write([prompts[i].encode() for i in chosen], n, STOPS if has_def else STOPS_WITHOUT_DEF,
                      max_new=options.max_new, temperature=temperature, seed=options.seed + start)
        for i, completions in zip(chosen, texts):
            done[i] = [text.decode("utf-8", "replace") for text in completions]
        if path:
            with open(path, "a") as f:
                f.writelines("\n" + json.dumps({"task_id": i, "completion": text}) for i in chosen for text in done[i])
    return done

# -----------------------------------------------------------------------------
# the sandbox
#
# A pass must not be something that a completion can fake, so the function under test never meets its tests. A judge, an
# interpreter of its own, holds tests and expected outputs. For each completion it has a process made that knows only the
# completion's text, is sent arguments, and sends back return values, both as plain data. All the judge believes is data:
# whoever sends the right values for all arguments has solved the problem.
#
#     score()  --problem, completions-->  judge  --code, arguments-->  serve(), in a process of its own
#              <-------verdicts---------         <--return values----
#
# On Linux both live without network, in a file system that holds Python, read-only, and an empty /scratch; a completion has
# process ids and a /scratch to itself, and what it has started is killed together with it.


def pack(x):
    """A value as JSON can carry it, with its type; `unpack` is the inverse. A subclass of a built-in type comes back as
    an unnamed subclass with the base's value and behaviour: an `__eq__` of one's own does not travel."""
    kind = type(x)
    if x is None or kind in (bool, str, float):
        return x
    if kind is int:
        return x if abs(x) < 2 ** 63 else {"int": hex(x)}
    if kind is list:
        kinds = set(map(type, x))  # long lists of plain values go as they are
        if kinds <= {bool, str, float, type(None)} or kinds <= {int, float} and -2 ** 63 < min(x) and max(x) < 2 ** 63:
            return x
        return [pack(y) for y in x]
    if kind in (tuple, set, frozenset):
        return {kind.__name__: [pack(y) for y in x]}
    if kind is dict:
        return {"dict": [[pack(k), pack(v)] for k, v in x.items()]}
    if kind is complex:
        return {"complex": [x.real, x.imag]}
    if kind in (bytes, bytearray):
        return {kind.__name__: x.decode("latin-1")}
    if isinstance(x, collections.abc.Iterator):
        return {"iterator": [pack(y) for y in x]}
    for base in (int, float, complex, str, bytes, list, tuple, dict, set, frozenset):
        if isinstance(x, base):
            return {"subclass": pack(base(x))}
    if isinstance(x, numbers.Integral):  # numpy's
        return {"subclass": pack(int(x))}
    if isinstance(x, collections.abc.Set):  # a dict's keys
        return {"subclass": pack(set(x))}
    if isinstance(x, (numbers.Rational, decimal.Decimal)):
        return {"Fraction": [hex(n) for n in x.as_integer_ratio()]}
    return {"object": None}


def unpack(x):
    if isinstance(x, list):
        return [unpack(y) for y in x] if {list, dict} & set(map(type, x)) else x
    if not isinstance(x, dict):
        return x
    (kind, y), = x.items()
    if kind == "int":
        return int(y, 16)
    if kind == "dict":
        return {unpack(k): unpack(v) for k, v in y}
    if kind == "complex":
        return complex(*y)
    if kind in ("bytes", "bytearray"):
        return getattr(builtins, kind)(y.encode("latin-1"))
    if kind == "Fraction":
        return fractions.Fraction(*(int(n, 16) for n in y))
    if kind == "object":
        return object()
    y = unpack(y)
    if kind == "subclass":
        return type("subclass", (type(y),), {})(y)
    return {"tuple": tuple, "set": set, "frozenset": frozenset, "iterator": iter}[kind](y)


LIBC, SCRATCH = ctypes.CDLL(None, use_errno=True), "/scratch"


def libc(name, *arguments):
    """Call a function of the C library. Raises OSError."""
    if getattr(LIBC, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def isolate():
    """Take this process and its children off the network, leave it Python's own files only, read-only, and give its
    children process ids of their own. Root may do so; others get a user namespace first, in which they may.

    Returns what could not be had, a list of words.
    """
    missing = ["network", "file system", "processes"]
    new_net, new_user, new_pid = 0x40000000 | 0x08000000 | 0x00020000, 0x10000000, 0x20000000  # with IPC and mounts
    read_only = struct.pack("QQQQ", 1 | 2, 0, 0, 0)  # MOUNT_ATTR_RDONLY and NOSUID, for mount_setattr(2), number 442
    uid, gid = os.getuid(), os.getgid()
    try:
        try:
            libc("unshare", new_net)
        except OSError:
            libc("unshare", new_user | new_net)
            for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
                with open(f"/proc/self/{name}", "w") as f:
                    f.write(text)
        missing.remove("network")
        libc("mount", None, b"/", None, 0x44000, None)  # MS_REC | MS_PRIVATE: nothing shows outside
        libc("mount", b"tmpfs", b"/sys", b"tmpfs", 0, b"mode=755")  # the new root; /sys only lends its place
        for path in ("/usr", "/lib", "/lib64", "/bin", "/nix", "/dev/null", "/dev/zero", "/dev/urandom",
                     os.path.realpath(sys.base_prefix), os.path.realpath(sys.prefix)):
            inside = f"/sys{path}"
            if os.path.lexists(inside) or not os.path.exists(path):
                continue
            os.makedirs(os.path.dirname(inside), exist_ok=True)
            if os.path.islink(path):
                os.symlink(os.readlink(path), inside)
                continue
            os.mkdir(inside) if os.path.isdir(path) else open(inside, "w").close()
            libc("mount", path.encode(), inside.encode(), None, 0x5000, None)  # MS_BIND | MS_REC
            if os.path.isdir(path):
                libc("syscall", 442, -100, inside.encode(), 0x8000, read_only, len(read_only))  # with all below it
        os.mkdir(f"/sys{SCRATCH}")
        if not os.path.lexists("/sys/tmp"):  # Python's own files may lie under it
            os.symlink(SCRATCH, "/sys/tmp")
        os.chdir("/sys")
        libc("pivot_root", b".", b".")
        libc("umount2", b".", 2)  # MNT_DETACH: the old root is gone
        os.chdir("/")
        empty_scratch()
        libc("syscall", 442, -100, b"/", 0, read_only, len(read_only))
        missing.remove("file system")
        libc("unshare", new_pid)
        missing.remove("processes")
    except (OSError, AttributeError):  # not allowed here, or not Linux
        pass
    return missing


def empty_scratch():
    """The only place where a completion may write."""
    libc("mount", b"tmpfs", SCRATCH.encode(), b"tmpfs", 6, b"size=64m,mode=1777")


def drop_privileges(uid):
    """Become user `uid` if this is root, and give up what a user namespace allowed."""
    with contextlib.suppress(OSError):
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    with contextlib.suppress(OSError, AttributeError):
        libc("prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
        libc("capset", struct.pack("Ii", 0x20080522, 0), bytes(24))


def serve(channel, memory, seconds, uid, isolated):
    """The process that a completion is confined to: define its function, then call it on what the judge sends."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor, copy in ((null, 0), (null, 1), (null, 2), (channel, 3)):
        os.dup2(descriptor, copy)
    os.closerange(4, 1024)
    for what, bound in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_FSIZE, 1 << 24),
                        (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NPROC, 32 if isolated else 1024)):
        with contextlib.suppress(ValueError, OSError):  # macOS knows no limit on the address space
            resource.setrlimit(what, (bound, bound))
    with contextlib.suppress(OSError, AttributeError):
        libc("unshare", 0x08000000)  # CLONE_NEWIPC: shared memory ends with the process
    drop_privileges(uid)
    requests, replies = open(3, "rb", closefd=False), open(3, "wb", closefd=False)

    def reply(work):
        try:
            message = "returned " + json.dumps(work())
        except BaseException as error:
            message = f"raised {type(error).__name__}"
        replies.write(message.encode("ascii", "replace") + b"\n")
        replies.flush()

    os.write(3, b".")  # by which the judge learns the process id
    job, scope = json.loads(requests.readline()), {}

    def define():
        exec(compile(job["code"], "completion", "exec"), scope)
        scope[job["entry_point"]]

    def call(arguments):
        return pack(scope[job["entry_point"]](*unpack(arguments)))

    reply(define)
    for line in requests:
        for arguments in json.loads(line):
            reply(lambda: call(arguments))


def confine(orders, isolated):
    """The parent of the processes that completions run in, one after the other: makes one when the judge asks, kills it and
    all that it has started when the judge is done. Where process ids are their own it is number 1, whom they can't kill."""
    while True:
        settings, channels, _, _ = socket.recv_fds(orders, 1 << 10, 1)
        if not settings:  # the judge is gone
            os._exit(0)
        folder = SCRATCH
        if not isolated:
            import tempfile
            folder = tempfile.mkdtemp(prefix="nanoproxy-judge-")
            os.chmod(folder, 0o777)
        os.chdir(folder)
        child = os.fork()
        if child == 0:
            serve(channels[0], *json.loads(settings), isolated)
            os._exit(0)
        os.close(channels[0])
        alive = orders.recv(1)
        with contextlib.suppress(OSError):  # there may be none left
            os.kill(child, signal.SIGKILL)
            os.kill(-1 if isolated else -child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                with contextlib.suppress(OSError):  # what has left the process group, where that was possible
                    for orphan in [] if isolated else open(f"/proc/self/task/{os.getpid()}/children").read().split():
                        os.kill(int(orphan), signal.SIGKILL)
                os.waitpid(-1, 0)
        os.chdir("/")
        if not isolated:
            import shutil
            shutil.rmtree(folder, ignore_errors=True)
        elif os.listdir(SCRATCH):
            libc("umount2", SCRATCH.encode(), 2)
            empty_scratch()
        if not alive:
            os._exit(0)


class Failed(Exception):
    """A completion is wrong; the text says how."""


PROC, PYTHON_FOR_ALL = None, False  # `judge` sets them: /proc as it was, open; and whether any user can read Python's files


class Box:
    """A completion's function, in its process. `spent`: the seconds it has taken so far, without those in which it waited
    for a core: a verdict must not depend on how busy the machine is."""
    def __init__(self, orders, code, entry_point, memory, seconds):
        self.orders, self.buffer, self.spent = orders, bytearray(), 0.0
        self.channel, theirs = socket.socketpair()
        with contextlib.suppress(OSError, AttributeError):
            self.channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        uid = random.getrandbits(29) | 1 << 30 if PYTHON_FOR_ALL else 0  # a user that nobody is
        socket.send_fds(orders, [json.dumps([memory, int(seconds), uid]).encode()], [theirs.fileno()])
        theirs.close()
        _, credentials, _, _ = self.channel.recvmsg(1, 64)
        self.pid = struct.unpack("i", credentials[0][2][:4])[0] if credentials else 0
        self.write({"code": code, "entry_point": entry_point})

    def write(self, message):
        try:
            self.channel.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            raise Failed("exited") from None

    def waited(self):
        """Seconds that the process was ready to run and had no core."""
        try:
            with open(os.open(f"{self.pid}/schedstat", os.O_RDONLY, dir_fd=PROC)) as f:
                return int(f.read().split()[1]) / 1e9
        except OSError:
            return 0.0

    def read(self, limit):
        """What the next call returned: packed, as JSON text. Raises Failed if it raised, and after `limit` seconds, or ten
        times that on the clock."""
        signal.alarm(int(10 * limit) + 30)
        started, waited, took = time.monotonic(), None, 0.0
        end = self.buffer.find(b"\n")
        while end < 0:
            if select.select([self.channel], [], [], 0.05 if waited is None else max(0.0, limit - took) + 0.001)[0]:
                try:
                    part = self.channel.recv(1 << 20)
                except OSError:
                    part = b""
                end = part.find(b"\n") + len(self.buffer) if b"\n" in part else -1
                self.buffer += part
                if not part or len(self.buffer) > 1 << 26:
                    raise Failed("too much output" if part else "exited")
            clock = time.monotonic() - started
            if end < 0 and clock > 0.05:
                waited = self.waited() if waited is None else waited
                took = clock - (self.waited() - waited)
                if took > limit or clock > 10 * limit:
                    raise Failed("timed out")
        self.spent += time.monotonic() - started - (self.waited() - waited if waited is not None else 0.0)
        verdict, _, text = bytes(self.buffer[:end]).decode("ascii", "replace").partition(" ")
        del self.buffer[:end + 1]
        signal.alarm(20)  # for the judge itself, which goes on to work with what it gets
        if verdict != "returned":
            raise Failed(text[:100])
        return text

    def close(self):
        """Have the process killed, and all that it started. The next one is not made before they are gone."""
        self.channel.close()
        self.orders.send(b".")

# -----------------------------------------------------------------------------
# scoring


def restore(task_id, inputs):
    """MBPP+'s inputs as its solutions expect them: JSON has made lists of their tuples and sets, strings of their complex
    numbers. The rules by problem are evalplus 0.3.1's (evalplus/data/mbpp.py); others pass through unchanged."""
    def tuples(x, levels):
        """Lists to tuples at the depths where `levels` is 1, such as "01": tuples inside a list."""
        x = [tuples(y, levels[1:]) for y in x] if len(levels) > 1 else x
        return tuple(x) if levels[0] == "1" else x

    def everywhere(x):
        return tuple(everywhere(y) for y in x) if isinstance(x, list) else x

    number = int(task_id.split("/")[1]) if re.fullmatch(r"Mbpp/\d+", task_id) else 0
    for levels, arguments, tasks in (
            ("1", None, "2 116 132 143 222 261 273 394 399 421 424 429 470 560 579 596 616 630 726 740 744 809"),
            ("01", None, "63 64 70 94 120 237 272 299 400 409 417 438 473 614 780"),
            ("11", None, "259 401 445"),
            ("01", [0], "75 413 444 753"),
            ("1", [1], "106 750"),
            ("1", [0], "250 307 405 446 617 720 763 808")):
        if str(number) in tasks.split():
            return [[tuples(x, levels) if arguments is None or i in arguments else x for i, x in enumerate(row)]
                    for row in inputs]
    rules = {115: lambda row: [[set(x) if isinstance(x, list) and x else {} for x in row[0]]],
             124: lambda row: [float(row[0]), complex(row[1])],
             252: lambda row: [complex(row[0])],
             278: lambda row: [tuple(tuple(x) if isinstance(x, list) else x for x in row[0])],
             722: lambda row: [{key: tuple(x) for key, x in row[0].items()}, *row[1:]],
             580: everywhere, 615: everywhere, 791: everywhere}
    return [list(rules[number](row)) for row in inputs] if number in rules else inputs


def accepts(problem, arguments, out, want, atol):
    """Whether evalplus 0.3.1 takes `out` where the canonical solution gave `want`. Raises what comparing them may raise."""
    name, mbpp = problem["entry_point"], problem["task_id"].startswith("Mbpp/")
    if name == "find_zero" and not mbpp:  # HumanEval/32: any root will do
        return abs(sum(c * math.pow(out, i) for i, c in enumerate(arguments[0]))) <= atol
    right = out == want
    if mbpp and name == "are_equivalent":  # any answer will do
        right = True
    elif mbpp and name == "sum_div":
        right = right or out == 0
    elif mbpp and name == "surface_Area":  # of a pyramid, whose height may be meant along its axis
        base, height = arguments
        right = right or abs(out - round(base ** 2 + 2 * base * math.sqrt((base / 2) ** 2 + height ** 2))) <= atol
    elif mbpp and name == "digit_distance_nums":
        a, b = map(str, arguments)
        right = right or out == sum(abs(int(x) - int(y)) for x, y in zip(a.zfill(len(b)), b.zfill(len(a))))
    elif mbpp and name in ("similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly", "larg_nnum",
                           "intersection_array", "find_dissimilar", "Diff"):  # order and repeats don't matter
        right = set(out) == set(want)
    elif mbpp and name in NOT_NONE:
        right = out == want if isinstance(out, bool) else (out is not None) == want
    if right or atol == 0:
        return right
    import numpy
    return (type(out) is type(want) and not (isinstance(want, (list, tuple)) and len(out) != len(want))
            and bool(numpy.allclose(out, want, rtol=1e-7, atol=atol)))


NOT_NONE = ("check_str", "text_match_three", "text_starta_endb")  # of these MBPP+ asks only whether there is an answer
SLOWER, SECOND = 4, 1.0  # evalplus's limits: for an input, so many times the canonical solution's time, at least a second


def run_inputs(orders, problem, code, kind, memory, known):
    """Run `code` on the problem's inputs of one kind, "base_input" or "plus_input". Raises Failed.

    known: of each input [output as text, seconds, tolerance] by the canonical solution. None while that is what is asked
    for; it is returned.
    """
    inputs, made, atol = restore(problem["task_id"], problem[kind]), [], problem["atol"]
    limits = [max(SECOND, SLOWER * seconds) for _, seconds, _ in known] if known else [60.0] * len(inputs)
    total = min(60.0, sum(limits)) + 2 if known else 600.0
    box = Box(orders, code, problem["entry_point"], memory, total + 10)
    try:
        box.read(total)
        box.write([pack(arguments) for arguments in inputs])
        for i, limit in enumerate(limits):
            spent = box.spent
            text = box.read(min(limit, total - spent))
            if known:
                try:
                    want, _, atol = known[i]
                    right = text == want or accepts(problem, inputs[i], *map(unpack, map(json.loads, (text, want))), atol)
                except Exception:
                    right = False
                if not right:
                    raise Failed("wrong answer")
            else:
                out = unpack(json.loads(text))
                if problem["entry_point"] in NOT_NONE and problem["task_id"].startswith("Mbpp/"):
                    text = json.dumps(out is not None)
                if atol == 0 and (isinstance(out, float) or isinstance(out, (list, tuple)) and out
                                  and all(isinstance(x, float) for x in out)):
                    atol = 1e-6  # as in evalplus, for this input and all later ones
                made.append([text, box.spent - spent, atol])
    finally:
        box.close()
    return made


@functools.lru_cache(1)
def surroundings(prompt, solution, test):
    """(what the tests of a problem find beside its function, the tests compiled), made once for all its completions."""
    scope = {}
    with contextlib.suppress(Exception):
        exec(prompt + solution, scope)
    return scope, compile(test, "test", "exec")


def run_check(orders, problem, code, memory, limit):
    """Run HumanEval's `check` here, on a stand-in that has the function called over there. Returns the seconds it took.
    Raises Failed."""
    box = Box(orders, code, problem["entry_point"], memory, limit + 10)

    def candidate(*arguments):
        box.write([pack(list(arguments))])
        return unpack(json.loads(box.read(limit - box.spent)))

    try:
        beside, tests = surroundings(problem["prompt"], problem.get("canonical_solution", ""), problem["test"])
        scope = beside | {problem["entry_point"]: candidate}
        box.read(limit)
        exec(tests, scope)
        scope["check"](candidate)
    except AssertionError:
        raise Failed("wrong answer") from None
    except Failed:
        raise
    except BaseException as error:
        raise Failed(type(error).__name__) from None
    finally:
        box.close()
    return box.spent


def judge():
    """Reads jobs from stdin, two lines of JSON: {"problem", "codes", "timeout", "memory"}, and what is known of the
    canonical solution, null at first. Writes that in a line, then for each code "passed", "passed base, then failed: .."
    or "failed: ..". Its first line of all says what could not be isolated."""
    global PROC, PYTHON_FOR_ALL
    with contextlib.suppress(OSError):
        PROC = os.open("/proc", os.O_RDONLY)
    os.environ.clear()
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    missing = isolate()
    if "file system" not in missing:
        os.environ.update(HOME=SCRATCH, TMPDIR=SCRATCH)
    folders = os.__file__.split("/")[:-1]
    PYTHON_FOR_ALL = all(os.stat("/".join(folders[:i]) + "/").st_mode & 1 for i in range(1, len(folders) + 1))
    with contextlib.suppress(OSError, AttributeError):
        libc("prctl", 4, 0, 0, 0, 0)  # PR_SET_DUMPABLE: its memory is closed to others
    orders, theirs = socket.socketpair()
    if os.fork() == 0:
        orders.close()
        if "processes" in missing:
            with contextlib.suppress(OSError, AttributeError):
                libc("prctl", 36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans come to this process
        compile("0", "", "eval")  # its first call costs a millisecond, which every fork would pay
        gc.freeze()
        confine(theirs, "processes" not in missing)
    theirs.close()
    drop_privileges(1 << 30 | os.getpid() if PYTHON_FOR_ALL else 0)
    with contextlib.suppress(OSError, AttributeError):
        libc("prctl", 1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG: not to outlive who started it
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (1 << 32, 1 << 32))
    print(json.dumps(missing), flush=True)
    for line in sys.stdin:
        job, known = json.loads(line), json.loads(sys.stdin.readline())
        problem, memory, kinds = job["problem"], job["memory"], ("base_input", "plus_input")
        canonical = problem["prompt"] + problem.get("canonical_solution", "") + "\n"
        try:
            if not known and "base_input" in problem:
                known = {kind: run_inputs(orders, problem, canonical, kind, memory, None) for kind in kinds}
            elif not known:
                known = {"seconds": run_check(orders, problem, canonical, memory, 60.0)}
        except Failed as error:
            known = {"error": str(error)}
        signal.alarm(0)
        print(json.dumps(known), flush=True)
        for code in [] if "error" in known else job["codes"]:
            result = "passed"
            try:
                if "base_input" in problem:
                    result = ""
                    for kind in kinds:
                        run_inputs(orders, problem, code, kind, memory, known[kind])
                        result = "passed" if result else "passed base"
                else:
                    run_check(orders, problem, code, memory, max(job["timeout"], SLOWER * known["seconds"]))
            except Failed as error:
                result = f"passed base, then failed: {error}" if result == "passed base" else f"failed: {error}"
            signal.alarm(0)
            print(json.dumps(result), flush=True)
    orders.close()
    os.wait()


# The judge's program. It imports what completions import most, so that their processes find it loaded.
JUDGE = "\n".join([
    "import bisect, builtins, collections, collections.abc, contextlib, copy, ctypes, decimal, fractions, functools, gc",
    "import heapq, itertools, json, math, numbers, operator, os, random, re, resource, select, signal, socket, string",
    "import struct, sys, time, typing",
    f"LIBC, SCRATCH, PROC, PYTHON_FOR_ALL = ctypes.CDLL(None, use_errno=True), '{SCRATCH}', {PROC}, {PYTHON_FOR_ALL}",
    f"NOT_NONE, SLOWER, SECOND = {NOT_NONE}, {SLOWER}, {SECOND}",
    *map(inspect.getsource, (pack, unpack, libc, isolate, empty_scratch, drop_privileges, serve, confine, Failed, Box, restore,
                             accepts, run_inputs, surroundings, run_check, judge)),
    "judge()"])


@functools.cache
def warn_once(text):
    print(text, file=sys.stderr)


def start_judge():
    """(process, what it could not isolate). Raises UserError where none starts."""
    command = [sys.executable, "-I", "-c", JUDGE, f"judge of {os.getpid()}"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                               start_new_session=True)  # Ctrl-C is for this process alone
    try:
        return process, json.loads(process.stdout.readline())
    except ValueError:
        raise UserError("the process that runs the tests did not start; see the lines above") from None


def score(problems, samples, timeout=3.0, memory=1 << 30):
    """Run the `samples`, rows {task_id, completion} or {task_id, solution}. Returns them with `result`, "passed" or how it
    failed, `passed` and, where there are base inputs, `base_passed`.

    timeout: seconds for a `check`, if the canonical solution's time does not ask for more; memory: bytes. What the
    canonical solutions give is kept in the cache. Raises UserError for a sample of no problem.
    """
    by_task = defaultdict(list)
    for number, sample in enumerate(samples, 1):
        task_id, text = sample.get("task_id"), sample.get("solution", sample.get("completion"))
        if not isinstance(text, str) or task_id not in problems:
            raise UserError(f"sample {number}: expected a string `completion` (or `solution`) and the `task_id` of a "
                            f"problem in the file, found task_id {task_id!r}")
        by_task[task_id].append(text if "solution" in sample else problems[task_id]["prompt"] + text)
    digest = hashlib.sha256((json.dumps(problems, sort_keys=True) + JUDGE).encode()).hexdigest()[:12]
    folder = CACHE / "expected" / digest
    folder.mkdir(parents=True, exist_ok=True)
    jobs, results, interrupted = iter(by_task.items()), defaultdict(list), []
    judges = {}

    def work(number):
        process, missing = start_judge()
        judges[number] = process
        if missing:
            warn_once(f"not isolated from completions on this machine: {', '.join(missing)}")
        for task_id, codes in jobs:  # shared by the workers
            path, verdicts = folder / f"{task_id.replace('/', '-')}.json.gz", results[task_id]
            known = gzip.decompress(path.read_bytes()).decode() if path.exists() else "null\n"
            while len(verdicts) < len(codes) and not interrupted:  # again where a completion took the judge down with it
                job = {"problem": problems[task_id], "codes": codes[len(verdicts):], "timeout": timeout, "memory": memory}
                try:
                    process.stdin.write(json.dumps(job) + "\n" + known)
                    process.stdin.flush()
                    told = process.stdout.readline()
                    if told.startswith('{"error"'):
                        verdicts += ["failed: canonical solution: " + json.loads(told)["error"]] * len(job["codes"])
                        progress.update(len(job["codes"]))
                        break
                    if known == "null\n" and told.endswith("\n"):
                        known = told
                        write_file(path, gzip.compress(told.encode(), 1))
                    for _ in job["codes"]:
                        verdicts.append(json.loads(process.stdout.readline()))
                        progress.update()
                except (OSError, ValueError):
                    verdicts.append("failed: took the judge down")
                    progress.update()
                    process.kill()
                    process.communicate()
                    process, _ = start_judge()
                    judges[number] = process
        process.communicate()

    workers = min(os.cpu_count(), max(1, len(by_task)))
    with tqdm(total=len(samples), desc="running tests", leave=False) as progress, ThreadPoolExecutor(workers) as pool:
        try:
            list(pool.map(work, range(workers)))
        except KeyboardInterrupt:
            interrupted.append(True)
            for process in judges.values():
                process.kill()
            raise
    queues = {task_id: iter(verdicts) for task_id, verdicts in results.items()}
    rows = [sample | {"result": next(queues[sample["task_id"]])} for sample in samples]
    for row in rows:
        row["passed"] = row["result"] == "passed"
        if "base_input" in problems[row["task_id"]]:
            row["base_passed"] = row["result"].startswith("passed")
    return rows

# -----------------------------------------------------------------------------
# metrics


def pass_at_k(n, c, k):
    """The chance that of k completions, drawn from n of which c are right, one is right: 1 - C(n-c, k) / C(n, k)
    (Chen et al. 2021, eq. 1)."""
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def with_interval(key, values):
    """{key: mean of the values, key_95: [low, high]}: a bootstrap 95 % interval over problems (10,000 draws, seed 0)."""
    values = np.array(values, dtype=float)
    draws = np.random.default_rng(0).integers(len(values), size=(10_000, len(values)))
    return {key: float(values.mean()), f"{key}_95": np.percentile(values[draws].mean(1), (2.5, 97.5)).tolist()}


def pass_rates(scored, ks):
    """pass@k of scored rows for each k in `ks` that has enough completions; that of base tests apart, where there are any."""
    results = {}
    for prefix, key in (("", "passed"), ("base_", "base_passed")):
        by_task = defaultdict(list)
        for row in scored:
            if key in row:
                by_task[row["task_id"]].append(row[key])
        for k in ks:
            if by_task and min(map(len, by_task.values())) >= k:
                results |= with_interval(f"{prefix}pass@{k}", [pass_at_k(len(r), sum(r), k) for r in by_task.values()])
    return results


def raw_windows(text, sentinels, context, stride, noise=0.0, rng=None):
    """A text, a uint8 array, between its sentinels, in windows of `context` symbols, each `stride` symbols further on.
    Yields (symbols, tails, targets, bytes scored): a target is scored once, in the first window that has it, and -100 later.

    noise: the share of the bytes that are replaced by random ones. These are not scored: what they cost says nothing.
    """
    body = np.append(text.astype(np.int64) + BYTE0, sentinels[1])
    hit = np.zeros(len(body), bool)
    if noise:
        hit[:-1] = rng.random(len(text)) < noise
        body[hit] = BYTE0 + rng.integers(256, size=hit.sum())
    start = end = 0
    while end < len(body):
        targets = body[start:start + context]
        tails = pack_tails(np.append(0, targets[:-1] - BYTE0))
        scored = (np.arange(start, start + len(targets)) >= end) & ~hit[start:start + context]
        n_bytes = (scored & (targets >= BYTE0)).sum()
        yield np.append(sentinels[0], targets[:-1]), tails, np.where(scored, targets, -100), n_bytes
        start, end = start + stride, start + len(targets)


@torch.inference_mode()
def bits_per_byte(model, samples, device, batch_size=64):
    """Bits per byte of text. samples: (symbols, tails, targets, bytes of text) of each, as `raw_windows` yields them."""
    samples = sorted(samples, key=lambda sample: len(sample[0]))
    nats = text_bytes = 0.0
    for start in tqdm(range(0, len(samples), batch_size), desc="bits per byte", leave=False):
        batch = samples[start:start + batch_size]
        symbols = torch.zeros(len(batch), max(len(s) for s, *_ in batch), dtype=torch.long)
        targets, tails = torch.full_like(symbols, -100), torch.zeros_like(symbols)
        for row, (s, t, y, length) in enumerate(batch):
            for tensor, values in ((symbols, s), (tails, t), (targets, y)):
                tensor[row, :len(s)] = torch.from_numpy(values)
            text_bytes += length
        nats += model(symbols.to(device), targets.to(device), tail=tails.to(device)).double().sum().item()
    return nats / math.log(2) / max(1, text_bytes)


def measure_bpb(model, trained, options):
    """{"bpb": bits per byte of up to `options.limit` held-out samples, spread over the corpus}, or "bpb_comp" through the
    proxy; with --context of whole documents; with --data of other corpora, a number for each."""
    results, size = {}, model.config.block_size
    for data in options.data.split(",") if options.data else [trained.data]:
        o = dataclasses.replace(trained, data=data, mix={"raw": 0.0, "comp": 1.0}[options.view])
        o.proxy = "none" if options.view == "raw" else o.proxy  # the raw side needs no proxy
        key = ("bpb" if options.view == "raw" else "bpb_comp") + (f" {data}" if options.data else "")
        if options.context > size:
            raise UserError(f"--context={options.context}: expected at most {size}, as the model was trained with")
        if options.context:
            held_out = [text for _, text, view, val in Corpus(data).documents() if val and view != "comp"]
            texts = [np.frombuffer(text, np.uint8) for text in held_out]
        else:
            views, _, _ = prepare(o, size)
            mixer = Mixer(views, o, size, 1, val=True)
            texts = mixer.pools[options.view]
        texts = [texts[i] for i in np.linspace(0, len(texts) - 1, min(options.limit, len(texts))).astype(int)]
        if options.view == "comp":
            shown = [mixer.shown(i, "comp") for i in texts]
            samples = [(s[:-1], t[:-1], s[1:], length) for s, t, length in shown]
        else:
            texts = texts if options.context else [views.raw(i) for i in texts]
            context, sentinels = options.context or size, sentinels_of(trained.mode)
            samples = [w for text in texts for w in raw_windows(text, sentinels, context, options.stride or context // 2)]
        results[key] = bits_per_byte(model, samples, options.device, options.batch_size)
    return results


NOISE = (0.01, 0.05, 0.10)
KEYS = {a: b for row in ("qwertyuiop", "asdfghjkl", "zxcvbnm") for a, b in zip(row, row[1:] + row[-2])}  # a key beside it


def meaning(source):
    """What a program does, as a string: its syntax tree without docstrings. Raises SyntaxError."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            body[0].value.value = ""
    return ast.dump(tree)


def rename_variables(prompt, solution, rng):
    """New names for the parameters, and for the variables of helpers, that can be seen in the prompt; docstrings keep the
    old ones. Raises SyntaxError where that can't be done safely."""
    whole, seen = ast.parse(prompt + solution), ast.parse(prompt)
    taken = {n.name for n in ast.walk(whole) if isinstance(n, (ast.FunctionDef, ast.ClassDef, ast.alias))}
    taken |= set(dir(builtins))
    old = dict.fromkeys(n.arg if isinstance(n, ast.arg) else n.id for n in ast.walk(seen)
                        if isinstance(n, ast.arg) or isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
    letters = rng.random() < 0.5
    new = {name: "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=6)) if letters else f"var_{i}"
           for i, name in enumerate(old) if name not in taken}
    functions, places = {n.name for n in seen.body if isinstance(n, ast.FunctionDef)}, set()
    for n in ast.walk(whole):
        named = n.keywords if isinstance(n, ast.Call) and getattr(n.func, "id", "") in functions else []
        for part in (n, *named):
            name = getattr(part, "id", None) if isinstance(part, ast.Name) else getattr(part, "arg", None)
            if name in new and (part is not n or isinstance(n, (ast.Name, ast.arg))):
                places.add((part.lineno, part.col_offset, name))
    lines = [line.encode() for line in (prompt + solution).split("\n")]  # columns count bytes
    for number, column, name in sorted(places, reverse=True):
        line = lines[number - 1]
        lines[number - 1] = line[:column] + new[name].encode() + line[column + len(name.encode()):]
    text = b"\n".join(lines).decode()
    back = meaning(text)
    for name in new:
        back = back.replace(f"'{new[name]}'", f"'{name}'")
    if back != meaning(prompt + solution) or not prompt.endswith("\n"):
        raise SyntaxError
    cut = len("\n".join(text.split("\n")[:prompt.count("\n")])) + 1
    return text[:cut], text[cut:]


def change_words(prompt, how, rng):
    """Typing errors in the prose of the last docstring, in a word of six; its examples are left alone."""
    start, end = [m.span(2) for m in re.finditer(r"(\"\"\"|''')(.*?)\1", prompt, re.S)][-1]
    prose = re.split(r">>>|\bassert\b|[Ee]xamples?\b|==|➞|->", prompt[start:end])[0]
    words = [m.span() for m in re.finditer(r"(?<![\w\\'\"(\[.])[A-Za-z]{3,}(?![\w'\"()\[\]])", prose)]
    for a, b in sorted(rng.sample(words, -(-len(words) // 6)), reverse=True):
        word, i = prose[a:b], rng.randrange(b - a - 1)
        word = {"swap": word[:i] + word[i + 1] + word[i] + word[i + 2:], "case": word.swapcase(), "spaces": word + " ",
                "typo": word[:i] + KEYS[word[i].lower()] + word[i + 1:]}[how]
        prompt = prompt[:start + a] + word + prompt[start + b:]
    return prompt


PERTURBATIONS = {
    "name": ("camel", "swap", "double", "capital"),
    "format": ("tabs", "two spaces", "blank line", "quotes", "split"),
    "syntax": ("rename",),
    "docstring": ("swap", "typo", "case", "spaces"),
}


def perturb(problem, kind, seed):
    """(prompt, canonical solution, entry point), changed in one way of a `kind`, one of ReCode's four; drawn by the seed.
    What the program means stays as it was; where no way applies, so does the text."""
    rng = random.Random(f"{problem['task_id']} {kind} {seed}")
    prompt, solution, name = problem["prompt"], problem.get("canonical_solution", ""), problem["entry_point"]
    for how in rng.sample(PERTURBATIONS[kind], len(PERTURBATIONS[kind])):
        new_prompt, new_solution, new_name, i = prompt, solution, name, rng.randrange(max(1, len(name) - 1))
        try:
            if kind == "name":
                new_name = {"camel": re.sub(r"(?<=[^_])_+(.)", lambda m: m[1].upper(), name), "capital": name.capitalize(),
                            "swap": name[:i] + name[i + 1:i + 2] + name[i] + name[i + 2:],
                            "double": name[:i] + name[i] + name[i:]}[how]
                new_prompt = re.sub(rf"(?<![\w.]){name}(?=\()", new_name, prompt)
                new_solution = re.sub(rf"(?<![\w.]){name}\b", new_name, solution)
                in_use = re.search(rf"\b{new_name}\b", prompt + solution) or hasattr(builtins, new_name)
                if in_use or keyword.iskeyword(new_name):
                    continue
                compile(new_prompt + new_solution, "", "exec")
            elif kind == "syntax":
                new_prompt, new_solution = rename_variables(prompt, solution, rng)
            elif kind == "docstring":
                new_prompt = change_words(prompt, how, rng)
            elif how in ("tabs", "two spaces"):
                unit = {"tabs": "\t", "two spaces": "  "}[how]
                new_prompt, new_solution = (re.sub(r"^(?:    )+", lambda m: len(m[0]) // 4 * unit, text, flags=re.M)
                                            for text in (prompt, solution))
            elif how == "blank line":
                new_prompt = rng.choice((prompt + "\n", re.sub(rf"(def {name}\(.*?:)\n", r"\1\n\n", prompt)))
            elif how == "quotes" and "'''" not in prompt:
                new_prompt = prompt.replace('"""', "'''")
            elif how == "split":
                new_prompt = prompt.replace(f"def {name}(", f"def {name}(\n        ")
            if kind in ("format", "docstring") and meaning(new_prompt + new_solution) != meaning(prompt + solution):
                continue
        except (SyntaxError, ValueError, IndexError):
            continue
        if new_prompt != prompt:
            return new_prompt, new_solution, new_name
    return prompt, solution, name


def measure_robustness(write, problems, options, keep):
    """Greedy pass@1 on the prompts as they are; for each kind of perturbation the share of problems that are solved under
    all `options.perturbations` seeds, and the relative drop (ReCode's RP_s@1 and RD_s@1)."""
    rows = []
    for kind in ("greedy", *PERTURBATIONS):
        for seed in range(options.perturbations if kind != "greedy" else 1):
            texts = {i: (p["prompt"], "", p["entry_point"]) if kind == "greedy" else perturb(p, kind, seed)
                     for i, p in problems.items()}
            prompts = {i: prompt for i, (prompt, _, _) in texts.items()}
            done = complete_problems(write, prompts, 1, options, 0.0, keep)
            for i, (prompt, _, name) in texts.items():  # the tests call the function by its old name
                alias = f"\n{problems[i]['entry_point']} = {name}\n"
                rows.append({"task_id": i, "kind": kind, "solution": prompt + done[i][0] + alias})
    solved = {kind: dict.fromkeys(problems, True) for kind in ("greedy", *PERTURBATIONS)}
    for row in score(problems, rows, options.timeout, options.memory << 20):
        solved[row["kind"]][row["task_id"]] &= row["passed"]
    results = with_interval("greedy pass@1", list(solved["greedy"].values()))
    for kind in PERTURBATIONS:
        results |= with_interval(f"robust {kind}", list(solved[kind].values()))
    for kind in PERTURBATIONS:
        results[f"drop {kind}"] = 1 - results[f"robust {kind}"] / max(1e-9, results["greedy pass@1"])
    return results


def measure_noise(model, trained, options):
    """Bits per byte of the untouched bytes of held-out samples in which a share of the bytes is replaced at random."""
    views, _, _ = prepare(dataclasses.replace(trained, proxy="none", mix=0.0), model.config.block_size)
    chosen = np.flatnonzero(views.val & (views.view != 2))
    chosen = chosen[np.linspace(0, len(chosen) - 1, min(options.limit, len(chosen))).astype(int)]
    results = {}
    for share in NOISE:
        rng, size = np.random.default_rng(0), model.config.block_size
        samples = [w for i in chosen for w in raw_windows(views.raw(i), sentinels_of(trained.mode), size, size, share, rng)]
        results[f"bpb, {share:.0%} noise"] = bits_per_byte(model, samples, options.device, options.batch_size)
    return results


def measure_translation(model, trained, proxy, problems, options):
    """Oracle translation (the paper's): a view of the prompt and canonical solution is given, the model writes the other.
    Shares of the problems that come out exactly, and that pass their tests; those too long for a context are left out."""
    results, size, texts, shown = {}, model.config.block_size, {}, {}
    for i, problem in problems.items():
        text = (problem["prompt"] + problem["canonical_solution"]).encode()
        comp = np.asarray(proxy.encode(text))
        if len(text) + len(comp) + 4 <= size:
            texts[i] = text
            raw = np.frombuffer(text, np.uint8)
            shown[i] = [between_sentinels(view, raw, comp, proxy.n_bytes) for view in ("raw", "comp")]
    results["translated problems"] = len(texts)
    for name, opener, closer, first, spelled in (
            ("comp to raw", RAW, END_RAW, BYTE0, [bytes([b]) for b in range(256)]),
            ("raw to comp", COMP, END_COMP, PROXY0, proxy.spellings())):
        to_raw, ids, rows, exact = opener == RAW, list(texts), [], []
        for start in tqdm(range(0, len(ids), 64), desc=f"translating {name}", leave=False):
            batch = ids[start:start + 64]
            prompts = [tuple(np.append(part, end) for part, end in zip(shown[i][to_raw], (opener, 0))) for i in batch]
            for i, symbols in zip(batch, write_view(model, prompts, first, closer, spelled)):
                try:
                    text = bytes(symbols) if to_raw else proxy.decode(symbols)
                except Exception:  # whatever a decompressor makes of what is no code
                    text = b""
                exact.append(text == texts[i])
                rows.append({"task_id": i, "solution": text.decode("utf-8", "replace")})
        if rows:
            results |= with_interval(f"{name}, exact", exact)
            scored = score(problems, rows, options.timeout, options.memory << 20)
            results |= with_interval(f"{name}, pass@1", [row["passed"] for row in scored])
    return results


def recall_facts(write, path):
    """{"facts_raw": share of the facts seen raw, "facts_comp": of those seen compressed only} that greedy decoding gives
    back from their prompts, and {"facts_chance"}, that of a guess: a fact is one of 9,000 numbers."""
    rows = [row for _, row in read_jsonl(path)]
    right = {"any": [], "comp": []}
    for start in tqdm(range(0, len(rows), ROWS_AT_ONCE), desc="recalling facts", leave=False):
        batch = rows[start:start + ROWS_AT_ONCE]
        texts = write([row["prompt"].encode() for row in batch], stops=(b"\n",), max_new=24, temperature=0)
        for row, (text,) in zip(batch, texts):
            right[row["view"]].append(text.strip() == f"return {row['answer']}".encode())
    return with_interval("facts_raw", right["any"] or [0]) | with_interval("facts_comp", right["comp"] or [0]) | {
        "facts_chance": 1 / 9000}

# -----------------------------------------------------------------------------
# runs, tables, figures

TASKS = {  # what is measured, and the options that a result depends on
    "bpb": ("view", "limit", "context", "stride", "data"),
    "pass": ("view", "n", "k", "temperature", "max_new", "timeout", "memory", "seed"),
    "robust": ("view", "perturbations", "max_new", "timeout", "memory", "limit", "seed"),
    "translate": ("timeout", "memory"),
    "facts": ("view",),
}


@dataclass
class EvalOptions:
    runs: tuple = flag((), "folders of runs [the newest under out/]", positional=True, nargs="*")
    task: str = flag("", "what to measure, with commas: bpb, pass, robust, translate, facts, or all [bpb, and pass and "
                     "facts for tinycode]")
    again: bool = flag(False, "measure again what a run's results.json has")
    view: str = flag("raw", "read and write raw bytes, or the proxy's symbols: a tokenizer model", choices=("raw", "comp"))
    limit: int = flag(1000, "bpb: held-out samples at most")
    context: int = flag(0, "bpb: symbols in a window over whole documents; 0: training's samples, each alone")
    stride: int = flag(0, "bpb: symbols from one window to the next [half of --context]")
    data: str = flag("", "bpb: corpora, with commas [the run's own]")
    batch_size: int = flag(64, "bpb: samples at once; the result does not depend on it")
    problems: str = flag("", "pass, robust, translate: a file in the format of HumanEval, HumanEval+ or MBPP+ [tinycode's]")
    n: int = flag(10, "pass: completions of each problem")
    k: str = flag("1,10", "pass: the k of pass@k")
    temperature: float = flag(None, "pass: of the sampling; 0 is greedy [0.2, and 0 where n is 1]", type=float)
    max_new: int = flag(256, "pass, robust: bytes of a completion at most")
    timeout: float = flag(3.0, "seconds for a completion's tests, more where the canonical solution needs it")
    memory: int = flag(1024, "megabytes for a completion's tests")
    seed: int = flag(0, "pass: of the sampling")
    perturbations: int = flag(3, "robust: seeds of each kind; a problem counts if it is solved under all")
    samples: str = flag(None, "score the completions in this file, JSON lines {task_id, completion}; needs no run")
    save: str = flag(None, "pass: write the completions and verdicts to this file, in the same form")
    plot: str = flag(None, "draw bits per byte against compute, and pass@k, to this PNG (needs matplotlib)")
    json: bool = flag(False, "print the results as one line of JSON, last")
    device: str = flag("cpu", "cpu or cuda")

    def check(self):
        """Raises UserError for what cannot be."""
        for task in self.tasks():
            if task not in TASKS:
                raise UserError(f"--task={task}: expected some of {','.join(TASKS)}{nearest(task, TASKS)}")
        expect(self, "above 0", "limit", "n", "max_new", "timeout", "memory", "batch_size", "perturbations")
        expect(self, "of 0 or more", "seed", "context", "stride")
        self.temperature = (0.0 if self.n == 1 else 0.2) if self.temperature is None else self.temperature
        expect(self, "of 0 or more", "temperature")
        if self.stride > self.context:
            raise UserError(f"--stride={self.stride}: expected at most --context={self.context}, or bytes are left out")
        expect_device(self.device)
        self.ks()

    def tasks(self):
        return list(TASKS) if self.task == "all" else [task for task in self.task.split(",") if task]

    def ks(self):
        try:
            ks = [int(k) for k in self.k.split(",")]
            assert min(ks) > 0
            return ks
        except (ValueError, AssertionError):
            raise UserError(f"--k={self.k}: expected positive numbers with commas between, such as 1,10") from None


def score_samples(problems, samples, options):
    """pass@k of the samples as a dict; HumanEval+'s base tests apart. --save writes the scored rows."""
    scored = score(problems, samples, options.timeout, options.memory << 20)
    if options.save:
        write_file(options.save, "".join(json.dumps(row) + "\n" for row in scored).encode())
    return pass_rates(scored, options.ks())


def tinycode_folder(data):
    """Where the problems and facts are of a corpus that data/tinycode.py wrote: beside it. None for other corpora."""
    if data == "tinycode":
        return TINYCODE
    path = Path(data)
    whole = all((path.parent / name).exists() for name in ("problems.jsonl", "facts.jsonl"))
    return path.parent if path.name == "corpus.jsonl" and whole else None


def measure(task, model, trained, options, keep, run, problems):
    """The results of one task: {name: number}, with name_95, a 95 % interval, beside shares of problems. problems: by task_id,
    for the tasks that have some."""
    if task == "bpb":
        return measure_bpb(model, trained, options)
    write = writer(model, trained, options, run)
    if task == "facts":
        return recall_facts(write, tinycode_folder(trained.data) / "facts.jsonl")
    if task == "pass":
        prompts = {i: problem["prompt"] for i, problem in problems.items()}
        done = complete_problems(write, prompts, options.n, options, options.temperature, keep)
        samples = [{"task_id": i, "completion": text} for i in problems for text in done[i]]
        return score_samples(problems, samples, options)
    if task == "robust":
        robust = measure_robustness(write, problems, options, keep)
        return robust if options.view == "comp" else robust | measure_noise(model, trained, options)
    if not (Path(run) / "proxy.pt").exists() or trained.mode == "vanilla":
        return {}  # one view only, or no sentinels to ask for the other
    return measure_translation(model, trained, load_proxy(Path(run) / "proxy.pt"), problems, options)


def evaluate(model, checkpoint, options, tasks=None, run=None, results=None):
    """The results of the tasks for a model, a dict of numbers; results: the dict to fill. A `run`'s results and completions
    are kept in its folder, where the next call finds them."""
    trained = MixOptions(**{f: v for f, v in checkpoint["options"].items() if f in MixOptions.__dataclass_fields__})
    source = tinycode_folder(trained.data)
    tasks = tasks or [task for task in ("bpb", "pass", "facts") if source or task == "bpb"]
    results, known, path = {} if results is None else results, {}, run and Path(run) / "results.json"
    options.check()
    if path and path.exists() and not options.again:
        known = json.loads(path.read_text())
    stamp = keep = None
    if run and (Path(run) / "ckpt.pt").exists():
        stamp = (Path(run) / "ckpt.pt").stat().st_mtime_ns
        keep = Path(run) / "completions" / f"{stamp:x}"
        keep.parent.mkdir(exist_ok=True)
    for task in tasks:
        if task == "facts" and not source:
            continue
        settings = {name: getattr(options, name) for name in TASKS[task]}
        problems = None
        if task in ("pass", "robust", "translate"):
            problems = read_problems(options.problems or source and source / "problems.jsonl")
        key = hashlib.sha256(json.dumps([task, settings, problems, stamp]).encode()).hexdigest()[:12]
        if key not in known or options.save and task == "pass":
            measured = measure(task, model, trained, options, keep, run, problems)
            known[key] = {"task": task, "settings": settings, "problems": options.problems, "results": measured}
            if stamp:
                try:
                    write_file(path, json.dumps(known, indent=1).encode())
                except UserError as error:
                    warn_once(f"results not kept: {error}")
        results |= known[key]["results"]
    return results


def print_table(table):
    """A row for each number, a column for each run; shares of problems with their 95 % intervals."""
    names = list(dict.fromkeys(name for results in table.values() for name in results if not name.endswith("_95")))
    width, columns = max(map(len, [*names, ""])), {run: max(20, len(run)) for run in table}
    print(" " * width, *(f"  {run:>{w}}" for run, w in columns.items()), sep="")
    for name in names:
        cells = []
        for run, w in columns.items():
            value, interval = table[run].get(name), table[run].get(f"{name}_95")
            shown = "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
            cells.append(f"{shown + (' [{:.3f}, {:.3f}]'.format(*interval) if interval else ''):>{w}}")
        print(f"{name:{width}}", *cells, sep="  ")


def plot(table, path):
    """Bits per byte against compute from the runs' logs, and bars of pass@k with their intervals, as a PNG."""
    try:
        import matplotlib
        matplotlib.use("Agg")
        from matplotlib import pyplot as plt
    except ImportError:
        raise UserError(f"--plot={path}: needs matplotlib; pip install matplotlib") from None
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    styles = ["-", "--", ":", "-."]
    for number, run in enumerate(table):
        log_path = Path(run) / "log.jsonl"
        if log_path.exists():
            log = [row for _, row in read_jsonl(log_path) if row["flops"] > 0]
            left.plot([row["flops"] for row in log], [row["val_raw"] for row in log], styles[number % 4],
                      marker="os^Dv"[number % 5], color=str(0.18 * (number % 5)), label=run)
    left.set(xlabel="training FLOPs", ylabel="bits per byte, held-out raw bytes", xscale="log", yscale="log")
    left.yaxis.set_major_formatter("{x:.2g}")
    left.yaxis.set_minor_formatter("{x:.2g}")
    ks = [k for k in dict.fromkeys(name for results in table.values() for name in results) if re.fullmatch(r"pass@\d+", k)]
    for number, (run, results) in enumerate(table.items()):
        shown = [k for k in ks if k in results]
        at = [ks.index(k) + 0.8 * ((number + 0.5) / len(table) - 0.5) for k in shown]
        values = [results[k] for k in shown]
        errors = np.array([[results[k] - results[f"{k}_95"][0], results[f"{k}_95"][1] - results[k]] for k in shown]).T
        right.bar(at, values, 0.8 / len(table), yerr=errors if shown else None, capsize=3, edgecolor="black",
                  color=str(0.35 + 0.6 * number / max(1, len(table) - 1)), hatch=["", "//", "..", "xx"][number % 4],
                  label=run)
    right.set(xticks=range(len(ks)), xticklabels=ks, ylabel="share of problems, 95 % intervals", ylim=(0, 1))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    print(f"wrote {path}")


def main(options):
    options.check()
    table, interrupted = {}, False
    try:
        if options.samples:
            samples = [row for _, row in read_jsonl(options.samples)]
            table[options.samples] = score_samples(read_problems(options.problems), samples, options)
        for run in [] if options.samples else options.runs or [newest_run()]:
            model, checkpoint = load_model(run, options.device)
            table[str(run)] = {}
            evaluate(model, checkpoint, options, options.tasks(), run, table[str(run)])
    except KeyboardInterrupt:
        interrupted = True
        print("interrupted; what is done is below, the same command goes on from here", file=sys.stderr)
    print_table(table)
    if options.plot:
        plot(table, options.plot)
    if options.json:
        print(json.dumps(next(iter(table.values())) if len(table) == 1 else table))
    if interrupted:
        raise KeyboardInterrupt


if __name__ == "__main__":
    command_line(main, EvalOptions, description="Measures runs on raw bytes.")
