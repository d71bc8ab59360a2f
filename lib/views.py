"""
From documents to what a model is trained on: both views of every sample, memory-mapped.

    cache/NAME-KEY/                         a corpus, cut into samples
        00000.raw  00000.raw.lengths        a shard of them: the bytes, and how many each sample has
        flags.bin                           of each sample: the views that it may be shown in, ..
        meta.json                           written last: all of the above is there
        PROXY-KEY/proxy.pt                  a proxy that was fitted on some of these samples
        PROXY-KEY/00000.comp  ...lengths    the shard in its symbols

A KEY is a hash of all that decides what is in its folder: names, sizes and times of the files, the
options, and the code but for its comments. So no file has to be opened to see whether it is still
valid. A file gets its name when it is whole: after a kill -9 the next run goes on with the first
shard of symbols that is not there. Processes share the work through locks alone: each takes the
next shard that is neither there nor locked. One per core is started here; the same command started
again, on this machine or on others that share the cache, does the same.
"""
import contextlib
import functools
import hashlib
import io
import json
import os
import pickle
import re
import secrets
import subprocess
import sys
import time
from array import array
from collections import defaultdict
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

from lib import data as data_file
from lib.data import (
    BUILT_IN, ROOT, code_of, documents, find_files, hash01, hold_out, key, parse_data, pieces)
from lib.options import UserError

# an empty variable is no variable, as the XDG rule has it
CACHE = Path(os.environ.get("NANOPROXY_CACHE") or ROOT / "cache").expanduser()
CACHE_TAG = b"Signature: 8a477f597d28d172789f06886806bc55"  # https://bford.info/cachedir
SHARD_BYTES = 2 ** 20   # the first shards; a later one is a 32nd of all text before it
AT_ONCE = 2 ** 18       # bytes of text that are encoded together
FIT_BYTES = 8_000_000   # a proxy is fitted on about this much text,
FIT_STRETCH = 2 ** 15   # in stretches that are read in one go

# the flags of a sample: two bits say which views training may show
ANY, RAW_ONLY, COMP_ONLY = 0, 1, 2
HELD_OUT = 4
BEGINS = 8  # its document begins with it
VIEW_FLAGS = {None: ANY, "raw": RAW_ONLY, "comp": COMP_ONLY}


# -----------------------------------------------------------------------------
# files that are whole or not there


@contextlib.contextmanager
def locked(folder):
    """A block in which no other process is: they wait, then find what it wrote.

    Makes `folder`, which holds the lock, as part of a cache. Raises UserError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "CACHEDIR.TAG").write_bytes(CACHE_TAG)
        try:
            lock = FileLock(folder / "lock").acquire(timeout=1)
        except Timeout:
            print(f"waiting for another process that is at work in {folder}")
            lock = FileLock(folder / "lock").acquire()
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error}; set NANOPROXY_CACHE to a folder "
                        "that can be written") from None
    with lock:
        yield


@contextlib.contextmanager
def new_file(path):
    """The file that becomes `path` at the end of the block, open for writing bytes.

    Until then it has a temporary name, with a random part: nobody ever reads half a file, and two
    processes that write the same file do not meet, on whatever machines. Raises UserError where it
    cannot be written; what was at `path` before is then still there.
    """
    temporary = Path(f"{path}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; what was finished before "
                        "is kept") from None
    finally:
        with contextlib.suppress(OSError):  # it has its name, or could not be made
            temporary.unlink()


def write_file(path, data):
    """Write `data` (bytes, or an array). Raises UserError, as `new_file` does."""
    with new_file(path) as file:
        file.write(data)


def write_json(path, value):
    write_file(path, json.dumps(value).encode())


def write_torch(path, state):
    """Write what `torch.load` reads back. Raises UserError."""
    import torch  # two seconds and 140 MB, which who only reads samples is spared
    with new_file(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch's own; its cause says more, as "no space left"
            raise error.__context__ or error


def file_id(path):
    """12 hex digits that tell what is in a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


# -----------------------------------------------------------------------------
# built-in corpora


def built_in_file(name):
    """The path of a built-in corpus, written first where it is not there, or older than its
    script. Raises UserError where the script fails."""
    script = BUILT_IN[name]
    path = script.with_suffix("") / "corpus.jsonl"
    with locked(CACHE / "built-in"):  # one process writes it
        if not path.exists() or path.stat().st_mtime < script.stat().st_mtime:
            if subprocess.run([sys.executable, script]).returncode:
                raise UserError(f"--data={name}: the corpus was not written; see the lines above")
    return path


def tinycode_file(data, name):
    """The path of problems.jsonl or facts.jsonl, which data/tinycode.py writes beside its corpus;
    None where `data` is no such corpus. The built-in one is written first. Raises UserError."""
    corpus = built_in_file(data) if data == "tinycode" else Path(data)
    path = corpus.parent / name
    return path if corpus.name == "corpus.jsonl" and path.exists() else None


# -----------------------------------------------------------------------------
# reading the views


class Sequences:
    """One view of every sample of a corpus, memory-mapped. lengths: of each, uint32 (n,)."""

    def __init__(self, paths, dtype):
        lengths = [np.fromfile(f"{path}.lengths", np.uint32) for path in paths]
        self.lengths = np.concatenate(lengths)
        self.shards = [np.memmap(path, dtype, "r").view(np.ndarray) for path in paths]
        self.first = np.cumsum([0] + [len(some) for some in lengths])  # first sample of each shard
        ends = [np.cumsum(some, dtype=np.int64) for some in lengths]   # within its shard
        self.ends = np.concatenate(ends)

    def __call__(self, i):
        """The symbols of sample i, an array."""
        shard = self.shards[np.searchsorted(self.first, i, side="right") - 1]
        end = int(self.ends[i])
        return shard[end - int(self.lengths[i]):end]


class Views:
    """Both views of every sample of a corpus, in the order of its documents.

    raw(i), comp(i): the bytes and the proxy's symbols of sample i; raw.lengths, comp.lengths: how
        many each sample has, (n,). `encode` sets comp.
    id: what the text is and what of it is held out, wherever and however long its samples are.
    allowed: uint8 (n,), which views may be shown: ANY, RAW_ONLY or COMP_ONLY. held_out: bool (n,).
    sources: (first sample, weight) of each source; those without a weight of their own, which count
        by their size, are one.
    symbol_lengths: how many bytes of text each proxy symbol stands for, or None.
    """
    comp = symbol_lengths = None

    def __init__(self, id, flags, sources, raw, folder=None):
        self.id = id
        self.flags = flags
        self.allowed = flags & 3
        self.held_out = (flags & HELD_OUT) > 0
        self.sources = sources
        self.raw = raw
        self.folder = folder
        self.text_bytes = int(raw.lengths.sum(dtype=np.int64))

    def __len__(self):
        return len(self.flags)

    def texts(self, samples):
        """The texts of some samples, numbers in order, a list of bytes; neighbours of one document
        are one text."""
        is_next = np.diff(samples, prepend=-2) == 1  # -2: so the first never counts as a neighbour
        begins_text = ~is_next | (self.flags[samples] & BEGINS > 0)
        neighbours = np.split(samples, np.flatnonzero(begins_text))[1:]  # the first is empty
        return [b"".join(map(self.raw, some.tolist())) for some in neighbours]

    def held_out_documents(self):
        """The held-out documents that may be shown raw, whole: a list of bytes."""
        return self.texts(np.flatnonzero(self.held_out & (self.allowed != COMP_ONLY)))


# -----------------------------------------------------------------------------
# the samples: one reading of the corpus


class Source:
    """One of the names in --data: its files, and once they are read what decides which of its
    samples are held out, and which views they may be shown in."""

    def __init__(self, name, weight):
        self.name = name
        self.weight = weight  # None: it counts by its size
        self.left_out = defaultdict(list)  # what of it is not read: {what: [where, ..]}
        path = str(built_in_file(name)) if name in BUILT_IN else name
        self.files = find_files(path, self.left_out)
        # four numbers per document: the hash of its name; what its row says, 1 held out, 0 trained
        # on, -1 nothing; the flag of its views; how many samples it has
        self.documents = array("d")

    def key(self):
        """What the key says of its files: of a built-in corpus, which may be written again, its
        script; of others their names, sizes and times."""
        if self.name in BUILT_IN:
            path = self.files["corpus.jsonl"]
            return code_of(BUILT_IN[self.name]), os.path.getsize(path)
        about = []
        for name, path in self.files.items():
            with contextlib.suppress(OSError):  # it is gone already
                status = os.stat(path)
                about.append((name, status.st_size, status.st_mtime_ns))
        return about

    def samples(self, text_column, longest):
        """Yield each sample, bytes of at most `longest`."""
        # a built-in corpus has its text in "text", whatever the other sources have
        column = None if self.name in BUILT_IN else text_column
        for document in documents(self.files, column, self.left_out):
            if not document.text:
                continue
            if document.begins:
                said = -1 if document.held_out is None else document.held_out
                self.documents.extend(
                    (hash01(document.name), said, VIEW_FLAGS[document.view], 0))
            for sample in pieces(io.BytesIO(document.text), longest):
                self.documents[-1] += 1
                yield sample

    def flags(self, digest):
        """The flags of all samples, uint8 (n,). Raises UserError."""
        for what, places in self.left_out.items():
            if places:
                print(f"data: {len(places):,} {what}, the first: {places[0]}", flush=True)
        hashes, said, allowed, n_samples = np.array(self.documents).reshape(-1, 4).T
        held_out = hold_out(hashes, said, allowed != COMP_ONLY, self.name)
        of_documents = (allowed + HELD_OUT * held_out).astype(np.uint8)
        digest.update(of_documents)
        n_samples = n_samples.astype(np.int64)
        flags = np.repeat(of_documents, n_samples)
        flags[np.cumsum(n_samples) - n_samples] += BEGINS  # the first of each document
        return flags


def write_shards(folder, samples):
    """Write samples, an iterator of bytes, in shards."""
    number = n_bytes = 0
    sample = next(samples, None)  # the next one to be written: without one there is no shard
    while sample is not None:
        path = folder / f"{number:05}.raw"
        shard_end = n_bytes + max(SHARD_BYTES, n_bytes // 32)
        lengths = array("I")
        with new_file(path) as file:
            while sample is not None and n_bytes < shard_end:
                file.write(sample)
                lengths.append(len(sample))
                n_bytes += len(sample)
                sample = next(samples, None)
        write_file(f"{path}.lengths", lengths)
        number += 1


def write_samples(folder, sources, text_column, longest):
    """Write the samples of some Sources in one reading. Raises UserError. A killed run begins
    again: reading takes less time than any proxy."""
    for left_over in folder.glob("*.raw*"):
        left_over.unlink()
    digest = hashlib.sha256()

    def all_samples():
        # a bar on the terminal; none where stderr is a file or a pipe
        with tqdm(desc="samples", unit="B", unit_scale=True, leave=False, disable=None) as progress:
            for source in sources:
                for sample in source.samples(text_column, longest):
                    digest.update(sample)
                    progress.update(len(sample))
                    yield sample

    write_shards(folder, all_samples())
    flags, weighted, n_samples = [], [], 0
    for source in sources:
        # all sources without weights are one, which begins with the first of them
        if source.weight or not weighted:
            weighted.append((n_samples, source.weight or 1.0))
        flags.append(source.flags(digest))
        n_samples += len(flags[-1])
    write_file(folder / "flags.bin", np.concatenate(flags))
    write_json(folder / "meta.json", {"id": digest.hexdigest()[:12], "sources": weighted})


def open_samples(data, text_column, longest):
    """The Views of a corpus, raw views alone, from the cache or written now. Raises UserError.

    longest: of a sample, in bytes.
    """
    sources = [Source(name, weight) for name, weight in parse_data(data)]
    code = code_of(data_file.__file__), code_of(__file__)
    about = [(source.key(), source.weight) for source in sources]
    folder_key = key(about, text_column, longest, code)
    called = ",".join(Path(source.name).resolve().name for source in sources)  # to know it by
    folder = CACHE / re.sub(r"\W+", "-", f"{called[:30]}-{folder_key}")
    with locked(folder):
        if not (folder / "meta.json").exists():
            write_samples(folder, sources, text_column, longest)
    meta = json.loads((folder / "meta.json").read_text())
    raw = Sequences(sorted(folder.glob("*.raw")), np.uint8)
    flags = np.fromfile(folder / "flags.bin", np.uint8)
    return Views(meta["id"], flags, meta["sources"], raw, folder)


# -----------------------------------------------------------------------------
# the proxy, and its view


def fitting_texts(views):
    """About FIT_BYTES of training text, a list of bytes: stretches of FIT_STRETCH, spread evenly
    over the corpus; of sources with weights as much as they weigh."""
    first_samples, weights = zip(*views.sources)
    texts = []
    for first, end, weight in zip(first_samples, [*first_samples[1:], len(views)], weights):
        training = first + np.flatnonzero(~views.held_out[first:end])
        n_bytes = int(views.raw.lengths[training].sum(dtype=np.int64))
        n_stretches = max(1, n_bytes // FIT_STRETCH)
        # every step-th stretch is taken
        step = max(1.0, n_bytes / (FIT_BYTES * weight / sum(weights)))
        stretches = np.array_split(training, n_stretches)
        chosen = [stretches[int(number)] for number in np.arange(0, n_stretches, step)]
        texts += views.texts(np.concatenate(chosen))
    return texts


def fitted_proxy(views, unfitted, load):
    """(proxy, its file): fitted on training samples of `views`, or read from the cache.

    load(path): reads a proxy back. Raises UserError.
    """
    folder = views.folder / f"{unfitted.name}-{unfitted.key()}"
    path = folder / "proxy.pt"
    with locked(folder):  # one process fits, others wait for it and read
        if path.exists():
            print(f"proxy: {unfitted.name}, cached in {folder}")
        else:
            print(f"proxy: fitting {unfitted.name}")
            texts = fitting_texts(views)
            fitted = unfitted.fit(texts)
            fitted.check(texts)  # else hours of training could go into wrong symbols
            fitted.save(path)
    return load(path), path


def encode_shard(raw_path, comp_path, proxy):
    """Write a shard in a proxy's symbols."""
    lengths = np.fromfile(f"{raw_path}.lengths", np.uint32)
    n_batches = os.path.getsize(raw_path) // AT_ONCE + 1
    comp_lengths = array("I")
    with open(raw_path, "rb") as text, new_file(comp_path) as symbols:
        for some_lengths in np.array_split(lengths, n_batches):
            texts = [text.read(length) for length in some_lengths.tolist()]
            for encoded in proxy.encode_batch(texts):
                comp_lengths.append(len(encoded))
                symbols.write(np.asarray(encoded, proxy.dtype))
        # before the shard itself gets its name: where it is, its lengths are too
        write_file(f"{comp_path}.lengths", comp_lengths)


def encode_shards(paths, proxy, parent=None, wait=False):
    """Encode every shard that is not there and that no other process is at.

    paths: (raw, comp) of each shard. parent: the process that this one helps, and ends with. wait:
    for shards that others are at; then encode those whose process was killed.
    """
    patience = -1 if wait else 0  # seconds; -1: as long as it takes
    for raw_path, comp_path in tqdm(paths, "encoding", unit="shard", leave=False, disable=None):
        if parent and os.getppid() != parent:
            return
        with contextlib.suppress(Timeout), FileLock(f"{comp_path}.lock", timeout=patience):
            if not comp_path.exists():
                for left_over in comp_path.parent.glob(f"{comp_path.name}.*.tmp"):
                    left_over.unlink()  # by a killed process
                encode_shard(raw_path, comp_path, proxy)


def start_helper(work):
    """A process that does `work()`, in silence: what goes wrong there goes wrong here too.

    It is a program of its own, not a copy of this process by `multiprocessing`, which would run the
    user's script again from its top.
    """
    program = "import pickle, sys; pickle.load(sys.stdin.buffer)()"
    search_path = os.pathsep.join(map(os.path.abspath, sys.path))
    settings = {"PYTHONPATH": search_path, "OMP_NUM_THREADS": "1"}  # each helper has one core
    process = subprocess.Popen([sys.executable, "-P", "-c", program], stdin=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, env=os.environ | settings)
    with contextlib.suppress(OSError), process.stdin:  # OSError: it has ended already
        process.stdin.write(pickle.dumps(work))
    return process


def seconds_a_byte(views, proxy):
    """What a proxy takes to encode, tried on the first samples."""
    texts = [views.raw(i).tobytes() for i in range(min(20, len(views)))]
    began = time.perf_counter()
    proxy.encode_batch(texts)
    return (time.perf_counter() - began) / sum(map(len, texts))


def encode_together(views, paths, proxy):
    """Encode shards in one process a core, with whoever else is at them. Then all are there."""
    n_cores = min(len(paths), os.cpu_count() or 1)
    n_bytes = sum(raw_path.stat().st_size for raw_path, _ in paths)
    seconds = n_bytes * seconds_a_byte(views, proxy) / n_cores
    print(f"proxy: encoding {n_bytes / 1e6:,.1f} MB, in about {seconds:,.0f} s; what is done when "
          "it is interrupted is kept", flush=True)
    # under torchrun so many processes of this machine come here, and each starts its share
    n_here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    work = functools.partial(encode_shards, paths, proxy, parent=os.getpid())
    helpers = [start_helper(work) for _ in range(n_cores // n_here - 1)]
    try:
        encode_shards(paths, proxy)
        encode_shards(paths, proxy, wait=True)
    finally:
        for helper in helpers:
            helper.kill()
            helper.wait()


def encode(views, proxy, folder):
    """Have the Views hold a proxy's symbols, too: from its folder, or encoded now. Raises
    UserError."""
    raw_paths = sorted(views.folder.glob("*.raw"))
    comp_paths = [folder / f"{raw_path.stem}.comp" for raw_path in raw_paths]
    missing = [(raw, comp) for raw, comp in zip(raw_paths, comp_paths) if not comp.exists()]
    if missing:
        encode_together(views, missing, proxy)
    views.comp = Sequences(comp_paths, proxy.dtype)
    views.symbol_lengths = proxy.symbol_lengths
