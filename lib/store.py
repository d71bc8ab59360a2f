"""
Both views of every sample on disk: the raw bytes and a proxy's symbols, memory-mapped.

mix.py prepares the views of a corpus and draws from them; `locked` and the `write_...` functions
also serve whatever else writes files that must be whole.

    cache/SOURCE/samples-LONGEST/              one shard of one source, cut into samples
        raw.bin  raw.idx  flags.bin            the bytes, where each sample ends, its flags
        PROXY/comp.bin  comp.idx               the same samples as a proxy's symbols
        meta.json, in both folders             written last: it says that the folder is complete

A large corpus takes hours to encode, so a run that was killed goes on where it was: worker
processes write the symbols in parts, and a part that is on disk is not encoded again.
"""
import array
import contextlib
import ctypes
import hashlib
import io
import itertools
import json
import os
import pickle
import queue
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from lib.corpus import ROOT, Corpus
from lib.cut import cut_at_lines
from lib.files import CACHE_SIGNATURE, CACHE_TAG, printable, progress_bar
from lib.options import UserError

CACHE = Path(os.environ.get("NANOPROXY_CACHE", ROOT / "cache"))
PART_BYTES = 1_000_000  # text that is encoded and written at a time
CHECKED_SAMPLES = 1000  # of a cached view, to see whether its proxy still encodes so after an edit

# The byte of flags that a sample has: two bits say which views training may show, one the split.
ANY, RAW_ONLY, COMP_ONLY = 0, 1, 2
VIEW_BITS = 0b011
HELD_OUT_BIT = 0b100
VIEW_FLAGS = {None: ANY, "raw": RAW_ONLY, "comp": COMP_ONLY}


# -----------------------------------------------------------------------------
# files that are whole or not there


@contextlib.contextmanager
def locked(folder):
    """Let one process at a time in; the others wait, then find what the first one wrote.

    Makes `folder`, which holds the lock. Raises UserError where it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock")
        try:
            lock.acquire(timeout=1)
        except Timeout:
            print(f"waiting for another process that is at work in {relative(folder)}")
            lock.acquire()
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error}; set NANOPROXY_CACHE to a folder "
                        "that can be written") from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def new_file(path):
    """The file that becomes `path` at the end of the block, open for writing bytes.

    Until then it has a temporary name, with the process's id in it: nobody ever reads half a file,
    and two processes that write the same file do not meet. Raises UserError where it cannot be
    written; what was at `path` before is then still there.
    """
    temporary = Path(f"{path}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}; what was finished before is kept") from None
    finally:
        temporary.unlink(missing_ok=True)


def write_file(path, data):
    """Write `data` (bytes). Raises UserError, as `new_file` does."""
    with new_file(path) as file:
        file.write(data)


def write_array(path, values):
    """Write the numbers of an array, without its shape or dtype. Raises UserError."""
    write_file(path, np.ascontiguousarray(values).data)


def write_torch(path, state):
    """Write what `torch.load` reads back. Raises UserError."""
    import torch  # two seconds and 140 MB, which an encoding process is spared
    with new_file(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch reports a full disk as one
            raise OSError(error) from None


def with_tensors(state):
    """A proxy's state, its arrays as tensors: torch.load reads those without trusting the file."""
    import torch
    return {key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
            for key, value in state.items()}


def write_state(path, state):
    """Write a proxy's state. Raises UserError."""
    write_torch(path, with_tensors(state))


def read_state(path):
    """The state that `write_state` wrote. Raises whatever a broken file makes torch throw."""
    import torch
    state = torch.load(path, weights_only=True)
    return {key: value.numpy() if isinstance(value, torch.Tensor) else value
            for key, value in state.items()}


def state_hash(state):
    """12 hex digits of the SHA-256 of what `write_state` writes."""
    import torch
    buffer = io.BytesIO()
    torch.save(with_tensors(state), buffer)
    return hashlib.sha256(buffer.getvalue()).hexdigest()[:12]


def write_json(path, value):
    write_file(path, json.dumps(value).encode())


def read_slice(path, dtype, start, end):
    """The numbers start .. end-1 of a file that `write_array` wrote."""
    dtype = np.dtype(dtype)
    return np.fromfile(path, dtype, count=end - start, offset=start * dtype.itemsize)


def is_complete(folder):
    return (folder / "meta.json").exists()


def remove_leftovers(folder):
    """Remove the temporary files and encoded parts that a killed run left in a folder, which is
    locked, and complete if it is one of parts."""
    for pattern in ("*.tmp", "[0-9]*.idx", "[0-9]*.bin"):
        for path in folder.glob(pattern):
            with contextlib.suppress(OSError):  # on Windows, a file that someone still has open
                path.unlink()


def relative(path):
    """A path as messages show it: from the working folder on, where there is a way."""
    try:
        return printable(os.path.relpath(path))
    except ValueError:  # on Windows, there is none to another drive
        return printable(path)


def return_freed_memory():
    """Give memory that is free again back to the system, hundreds of MB after a fit: the C library
    of Linux keeps it for later."""
    with contextlib.suppress(OSError, AttributeError):  # other systems have no such call
        ctypes.CDLL("libc.so.6").malloc_trim(0)


# -----------------------------------------------------------------------------
# reading the views


class Part:
    """The samples in one folder, memory-mapped: raw, and also encoded where `comp_folder` is given.

    Sample i is raw_symbols[raw_offsets[i]:raw_offsets[i + 1]], and so for comp. flags: uint8 (n,).
    Raises UserError where the encoded samples are not those of the raw ones.
    """

    def __init__(self, folder, comp_folder=None):
        self.folder = folder
        self.meta = json.loads((folder / "meta.json").read_text())
        self.raw_symbols = np.memmap(folder / "raw.bin", dtype=np.uint8, mode="r")
        self.raw_offsets = np.memmap(folder / "raw.idx", dtype=np.int64, mode="r")
        # flags are read whole: which samples may be drawn is asked of all of them
        self.flags = np.fromfile(folder / "flags.bin", dtype=np.uint8)
        if comp_folder is not None:
            self.open_comp(comp_folder)

    def open_comp(self, folder):
        meta = json.loads((folder / "meta.json").read_text())
        self.comp_symbols = np.memmap(folder / "comp.bin", dtype=meta["dtype"], mode="r")
        self.comp_offsets = np.memmap(folder / "comp.idx", dtype=np.int64, mode="r")
        same_corpus = meta["raw"] == self.meta["id"]
        if not same_corpus or len(self.comp_offsets) != len(self.raw_offsets):
            raise UserError(f"the views in {folder} are another corpus's: expected "
                            f"{self.meta['id']}, found {meta['raw']}; "
                            "delete that folder and run again")


class Views:
    """Both views of every sample of a corpus, part after part.

    allowed: uint8 (n,), which views may be shown: ANY, RAW_ONLY or COMP_ONLY. held_out: bool (n,).
    symbol_lengths: how many bytes of text each proxy symbol stands for, or None.
    starts: int64 (parts + 1,), the first sample of each part, then the number of samples.
    groups: (first part, weight) of each source that has a weight of its own. Where sources count by
        their size, all parts are one group.
    """

    def __init__(self, parts, symbol_lengths=None, groups=((0, 1.0),)):
        self.parts = parts
        self.symbol_lengths = symbol_lengths
        self.groups = groups
        n_samples = [len(part.flags) for part in parts]
        self.starts = np.cumsum([0, *n_samples], dtype=np.int64)
        flags = np.concatenate([part.flags for part in parts])
        self.allowed = flags & VIEW_BITS
        self.held_out = (flags & HELD_OUT_BIT) > 0
        self.id = "+".join(part.meta["id"] for part in parts)
        self.text_bytes = sum(part.meta["text_bytes"] for part in parts)

    def __len__(self):
        return len(self.allowed)

    def find(self, i):
        """(the part that sample i is in, its number there)"""
        n = int(np.searchsorted(self.starts, i, side="right")) - 1
        return self.parts[n], i - self.starts[n]

    def raw(self, i):
        """The bytes of sample i, uint8 (n,)."""
        part, number = self.find(i)
        start = part.raw_offsets[number]
        end = part.raw_offsets[number + 1]
        return part.raw_symbols[start:end]

    def comp(self, i):
        """The proxy's symbols of sample i, (n,) of the proxy's dtype."""
        part, number = self.find(i)
        start = part.comp_offsets[number]
        end = part.comp_offsets[number + 1]
        return part.comp_symbols[start:end]


# -----------------------------------------------------------------------------
# writing the raw view


class SampleTable:
    """What is known of each sample besides its bytes, while they are being written."""

    def __init__(self):
        # arrays that grow, and hold a number in 8 bytes where a list takes 40
        self.offsets = array.array("q", [0])  # where the first sample begins, then where each ends
        self.flags = array.array("B")

    def add(self, document, samples):
        """Add the samples (a list of bytes) of a document."""
        flag = VIEW_FLAGS[document.view]
        if document.held_out:
            flag |= HELD_OUT_BIT
        for sample in samples:
            self.offsets.append(self.offsets[-1] + len(sample))
            self.flags.append(flag)


def write_raw(source, folder, longest, shard=0, n_shards=1):
    """Write the samples of every n_shards-th document of a source, from document `shard` on.

    longest: of a sample, in bytes. Raises UserError where none of them is trained on.
    """
    table = SampleTable()
    documents = itertools.islice(source.documents(), shard, None, n_shards)
    progress = progress_bar("samples", source.n_bytes)
    with new_file(folder / "raw.bin") as file, progress:
        for document in documents:
            samples = cut_at_lines(document.text, longest)
            file.writelines(samples)
            table.add(document, samples)
            progress.update(len(document.text) * n_shards)  # the other shards' are passed over

    source.check_unchanged()
    flags = np.array(table.flags)
    if len(flags) == 0:
        raise UserError(f"--data={source.data}: no document with text{of_shard(shard, n_shards)}; "
                        "expected fewer shards")
    held_out = ((flags & HELD_OUT_BIT) > 0).mean()
    if held_out == 1:
        raise UserError(f"--data={source.data}: all documents{of_shard(shard, n_shards)} with text "
                        "are held out; expected one or more to train on")
    if held_out > 0.5:
        print(f"corpus: {held_out:.0%} of the samples{of_shard(shard, n_shards)} are held out "
              "(documents of one name are held out together)")
    if held_out == 0:  # of the whole source some are, but not of a small shard
        print(f"corpus: no document{of_shard(shard, n_shards)} is held out")
    write_array(folder / "raw.idx", table.offsets)
    write_array(folder / "flags.bin", flags)
    meta = {
        "id": f"{source.id}-{folder.name}",
        "data": source.data,
        "samples": len(flags),
        "text_bytes": table.offsets[-1],
    }
    write_json(folder / "meta.json", meta)


def of_shard(shard, n_shards):
    """Part of a message."""
    return f" of shard {shard}/{n_shards}" if n_shards > 1 else ""


# -----------------------------------------------------------------------------
# writing the proxy's view


@dataclass
class Encoding:
    """All that a process needs to know in order to encode parts of one folder's samples.

    Part n is the samples edges[n] .. edges[n + 1] - 1. It is written to two files of its own, so
    that processes need not wait for each other; `join` makes one of all parts. The files' names
    have the proxy's hash: what a killed run has left of other source is not used. (A field, since
    the source may be edited meanwhile.)
    """
    folder: Path
    comp_folder: Path
    proxy: object
    code_hash: str
    edges: list

    @property
    def parts(self):
        return range(len(self.edges) - 1)

    def symbols_path(self, part):
        return self.comp_folder / f"{part:06}-{self.code_hash}.bin"

    def offsets_path(self, part):
        return self.comp_folder / f"{part:06}-{self.code_hash}.idx"

    def is_done(self, part):
        return self.symbols_path(part).exists()

    def read_samples(self, part):
        """The texts of a part, a list of bytes."""
        first, end = self.edges[part], self.edges[part + 1]
        offsets = read_slice(self.folder / "raw.idx", np.int64, first, end + 1)
        text = read_slice(self.folder / "raw.bin", np.uint8, offsets[0], offsets[-1]).tobytes()
        within = (offsets - offsets[0]).tolist()
        return [text[a:b] for a, b in itertools.pairwise(within)]

    def encode(self, part):
        """Encode and write a part. Returns how many bytes of text it has. Raises UserError."""
        texts = self.read_samples(part)
        encoded = self.proxy.encode_batch(texts)
        lengths = [len(symbols) for symbols in encoded]
        symbols = np.concatenate(encoded).astype(self.proxy.dtype)
        # offsets within the part: where it will stand in comp.bin, only `join` knows
        # the symbols come last: that they are there means that the part is done
        write_array(self.offsets_path(part), np.cumsum(lengths, dtype=np.int64))
        write_array(self.symbols_path(part), symbols)
        return sum(len(text) for text in texts)

    def join(self):
        """Write comp.bin and comp.idx from the parts. Raises UserError."""
        offsets = [np.zeros(1, dtype=np.int64)]
        with new_file(self.comp_folder / "comp.bin") as file:
            for part in self.parts:
                ends = np.fromfile(self.offsets_path(part), dtype=np.int64)
                offsets.append(offsets[-1][-1] + ends)
                with open(self.symbols_path(part), "rb") as symbols:
                    shutil.copyfileobj(symbols, file)
        write_array(self.comp_folder / "comp.idx", np.concatenate(offsets))


def edges_of_parts(samples):
    """The first sample of each part of about PART_BYTES, then the number of samples: a list."""
    n_parts = max(1, round(samples.meta["text_bytes"] / PART_BYTES))
    in_text = np.linspace(0, samples.raw_offsets[-1], n_parts + 1)
    edges = np.searchsorted(samples.raw_offsets, in_text)
    return np.unique(edges).tolist()  # a sample longer than a part would leave some parts empty


class Worker:
    """A process that encodes parts, one after another: lib/encode_worker.py.

    It is a program of its own, not a copy of this process by `multiprocessing`, which would run the
    user's script again from its top, and so would hang where that script prepares views.
    """

    DIED = ("an encoding process was killed (out of memory?) or failed (see above); "
            "run again to go on")

    def __init__(self):
        program = ROOT / "lib" / "encode_worker.py"
        # there is a worker for each core
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self.process = subprocess.Popen([sys.executable, program], env=environment,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def send(self, data):
        """Write `data` (bytes) to the process. Raises UserError where it has ended."""
        try:
            self.process.stdin.write(data)
            self.process.stdin.flush()
        except OSError:
            raise UserError(self.DIED) from None

    def encode(self, part):
        """Have a part encoded. Returns how many bytes of text it has. Raises UserError."""
        self.send(f"{part}\n".encode())
        answer = self.process.stdout.readline().decode()
        if not answer.endswith("\n"):
            raise UserError(self.DIED)
        # not a number: what the user did wrong, such as filling the disk
        if not answer.strip().isdigit():
            raise UserError(answer.strip())
        return int(answer)

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        with contextlib.suppress(OSError):  # what was not yet sent has nowhere to go
            self.process.stdin.close()


def first_message(encoding):
    """What a worker is sent first: the folders that modules are in, then its work."""
    search_path = [os.path.abspath(folder) for folder in sys.path]
    # The work is bytes in bytes: it can be made an object only where the proxy's module is found.
    return pickle.dumps((search_path, pickle.dumps(encoding)))


def encode_in_workers(encoding, parts, n_workers, progress):
    """Encode `parts`, each in whichever worker is idle. Raises UserError."""
    message = first_message(encoding)
    workers = [Worker() for _ in range(n_workers)]
    idle = queue.SimpleQueue()

    def encode(part):
        worker = idle.get()
        try:
            return worker.encode(part)
        finally:
            idle.put(worker)

    with ThreadPoolExecutor(n_workers) as threads:
        try:
            for worker in workers:
                worker.send(message)
                idle.put(worker)
            for text_bytes in threads.map(encode, parts):
                progress.update(text_bytes)
        finally:
            # before the threads are waited for: after Ctrl-C they wait for the workers
            for worker in workers:
                worker.stop()


def count_workers(proxy, n_parts):
    """How many processes are to encode, 1 for this one alone."""
    # another process cannot import what the user's script or notebook defines itself
    if type(proxy).__module__ == "__main__":
        return 1
    return min(n_parts, os.cpu_count() or 1)


def encode_parts(encoding, text_bytes):
    """Encode those parts that are not on disk yet. Raises UserError."""
    parts = [part for part in encoding.parts if not encoding.is_done(part)]
    n_workers = count_workers(encoding.proxy, len(parts))
    with progress_bar("encoding", text_bytes) as progress:
        if n_workers > 1:
            encode_in_workers(encoding, parts, n_workers, progress)
        else:
            for part in parts:
                progress.update(encoding.encode(part))


def write_comp(folder, comp_folder, proxy):
    """Write a proxy's view of the samples in `folder`. Raises UserError; run again, it goes on."""
    samples = Part(folder)
    comp_folder.mkdir(parents=True, exist_ok=True)
    encoding = Encoding(folder, comp_folder, proxy, proxy.code_hash, edges_of_parts(samples))
    encode_parts(encoding, samples.meta["text_bytes"])
    encoding.join()
    meta = {
        "raw": samples.meta["id"],
        "proxy": proxy.id,
        "dtype": np.dtype(proxy.dtype).name,
        "code": encoding.code_hash,
    }
    write_json(comp_folder / "meta.json", meta)


# -----------------------------------------------------------------------------
# opening a corpus


def known_hashes(path):
    """What `save_hashes` wrote; nothing where it wrote nothing, or that cannot be read any more."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def open_corpus(data, text_column=None, rehash=False):
    """A Corpus, of which files hashed before are known by their names, sizes and times.

    rehash: hash them again. One process at a time works here, as a built-in corpus may have to be
    written first. Raises UserError.
    """
    digest = hashlib.sha256(os.fsencode(os.path.abspath(data))).hexdigest()
    path = CACHE / "hashes" / f"{digest[:12]}.json"
    with locked(CACHE):
        if not (CACHE / CACHE_TAG).exists():  # before --data=. is looked through
            write_file(CACHE / CACHE_TAG, CACHE_SIGNATURE)
        before = {} if rehash else known_hashes(path)
        hashes = dict(before)
        try:
            return Corpus(data, text_column, hashes)
        finally:  # also after Ctrl-C: what was hashed need not be hashed again
            if hashes != before:
                path.parent.mkdir(exist_ok=True)
                write_json(path, hashes)


# -----------------------------------------------------------------------------
# what can be known before a proxy is fitted

WHAT_IS = {True: "held-out", False: "training"}


def missing_views(corpus, views):
    """Those (held out, view) for which no document of the corpus has text: a set.

    views: the ones that are needed, of "raw" and "comp". Reads on only until it has met them all.
    Raises UserError for a source whose documents cannot be split.
    """
    missing = set(itertools.product((False, True), views))
    for source in corpus.sources:  # one after another, as each has a split of its own
        for document in source.documents():
            if document.text:
                shown = [document.view] if document.view else ["raw", "comp"]
                missing.difference_update((document.held_out, view) for view in shown)
            if not missing:
                break
    return missing


def check_views(corpus, views):
    """Raise a UserError for too few documents, and for views that no document may be shown in.

    views: those that the training needs, of "raw" and "comp".
    """
    missing = missing_views(corpus, views)
    if missing:
        held_out, view = min(missing)
        raise UserError(f"--data={corpus.data}: no {WHAT_IS[held_out]} document may be shown "
                        f"{view}; use other data, or another view (--mix in training, --view in "
                        "eval.py)")


def check_disk(corpus, views, share=1.0):
    """Raise a UserError for a disk too small for the views. share: of the corpus that is used,
    where it is prepared in shards."""
    # The raw view is as long as the text. The symbols take about three quarters of that, at most:
    # two bytes for nearly three of text. And twice, as the parts that processes write are only then
    # joined.
    needed = corpus.n_bytes * share * (2.5 if "comp" in views else 1)
    CACHE.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(CACHE).free
    if free < needed:
        raise UserError(f"--data={corpus.data}: about {needed / 1e9:.1f} GB of views, but only "
                        f"{free / 1e9:.1f} GB are free in {relative(CACHE)}; set NANOPROXY_CACHE "
                        "to a folder on a larger disk")


# -----------------------------------------------------------------------------
# a corpus as views


def parse_shard(text):
    """(range of shards, how many there are) from --shard: "2/8", or "0-3/8" for 0, 1, 2 and 3.

    Raises UserError.
    """
    match = re.fullmatch(r"(\d+)(?:-(\d+))?/(\d+)", text)
    if match:
        first = int(match[1])
        last = int(match[2] or match[1])
        n_shards = int(match[3])
        if first <= last < n_shards:
            return range(first, last + 1), n_shards
    raise UserError(f"--shard={text}: expected a part, such as 2/8 (from 0/8 to 7/8), "
                    "or a range of them, 0-7/8")


def prepare_raw(source, folder, longest, shard, n_shards):
    """Have the raw view in `folder`, which is locked."""
    if is_complete(folder):
        print(f"corpus: {printable(source.data)}, cached in {relative(folder)}")
    else:
        write_raw(source, folder, longest, shard, n_shards)
    remove_leftovers(folder)


def still_encodes(proxy, folder, comp_folder):
    """Whether a proxy encodes as it did when it wrote `comp_folder`: after an edit of its source
    some samples are compared."""
    meta = json.loads((comp_folder / "meta.json").read_text())
    if meta.get("code") == proxy.code_hash:
        return True
    part = Part(folder, comp_folder)
    views = Views([part])
    chosen = np.unique(np.linspace(0, len(views) - 1, CHECKED_SAMPLES).astype(int))
    texts = [views.raw(i).tobytes() for i in chosen]
    return all(np.array_equal(symbols, views.comp(i))
               for i, symbols in zip(chosen, proxy.encode_batch(texts)))


def prepare_comp(folder, comp_folder, proxy):
    """Have the proxy's view in `comp_folder`, which is in `folder`, which is locked."""
    if is_complete(comp_folder) and not still_encodes(proxy, folder, comp_folder):
        print("views: the proxy encodes otherwise now, so they are written again")
        (comp_folder / "meta.json").unlink()
    if is_complete(comp_folder):
        print(f"views: cached in {relative(comp_folder)}")
    else:
        write_comp(folder, comp_folder, proxy)
    remove_leftovers(comp_folder)


def prepare_part(source, proxy, longest, shard, n_shards):
    """One shard of one source as a Part, from the cache, or made now."""
    name = f"samples-{longest}"
    if n_shards > 1:
        name += f"-{shard}of{n_shards}"
    folder = CACHE / source.id / name
    # The lock is held until both are there: under torchrun one process works, the others wait here.
    with locked(folder):
        prepare_raw(source, folder, longest, shard, n_shards)
        if proxy is None:
            return Part(folder)
        comp_folder = folder / f"{proxy.name}-{proxy.id}"
        prepare_comp(folder, comp_folder, proxy)
    return Part(folder, comp_folder)


def prepare_views(corpus, proxy, longest, shards, n_shards):
    """The Views of a corpus, from the cache, or made now.

    proxy: has `encode_batch(texts)`, `dtype`, `id`, `code_hash`, `name`, `symbol_lengths`; None for
        raw views alone.
    longest: of a sample, in bytes. shards, n_shards: as `parse_shard` returns them.
    Raises UserError; what was finished by then is kept.
    """
    parts = []
    for source in corpus.sources:
        for shard in shards:
            part = prepare_part(source, proxy, longest, shard, n_shards)
            parts.append(part)

    if corpus.weights is None:
        groups = [(0, 1.0)]
    else:
        first_parts = range(0, len(parts), len(shards))
        groups = list(zip(first_parts, corpus.weights))
    symbol_lengths = None if proxy is None else proxy.symbol_lengths
    return Views(parts, symbol_lengths, groups)


# -----------------------------------------------------------------------------
# both cores at once

WORTH_A_PROCESS = 50_000_000  # bytes of text: less than that is written in a second


@contextlib.contextmanager
def writing_samples(corpus, longest, shards, n_shards):
    """A block, to fit a proxy in, during which another process writes the raw view of a large
    corpus: lib/write_samples.py.

    What it has not written, `prepare_views` writes afterwards, or says why it can't.
    """
    if corpus.n_bytes < WORTH_A_PROCESS:
        yield
        return
    process = subprocess.Popen([sys.executable, ROOT / "lib" / "write_samples.py"],
                               env=os.environ | {"TQDM_POSITION": "1"},  # below the fit's bar
                               stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        with contextlib.suppress(OSError), process.stdin:  # it may have ended
            pickle.dump((CACHE, corpus, longest, shards, n_shards), process.stdin)
        yield
        process.wait()
    finally:
        process.kill()
        process.wait()
