"""
From a corpus to training batches: documents, two views of each sample, and the mixed stream.

    documents -> samples (cut at line ends) -> raw bytes and the proxy's symbols, memory-mapped on disk
              -> draw a view for each sample -> sentinels -> pack into contexts

A sample is shown as `<raw> bytes </raw>` or as `<comp> symbols </comp>`; a *translation pair* is both, one behind the other
in one context. The share r of compressed views is what the paper calls the mixing rate. It rises from 0.4 to `mix`
while pairs are shown, stays there, and may fall to 0 in a last raw phase, which lets a small model turn to
the representation that it will be used with.

A row of a batch is a pure function of (seed, step, row): no loader state to save, resuming is exact, and one process
or eight train on the same batches.

    python mix.py                              prints some training contexts, sentinels visible, views in two colours
"""
import array
import contextlib
import ctypes
import fcntl
import gzip
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from model import BYTE0, PROXY0, UserError, command_line, expect, flag, nearest, pack_tails, raw_positions_first
from proxies import ProxyOptions, load_proxy, make_proxy

# The vocabulary of both views, as in the paper: 64 special symbols, the 256 bytes, the proxy's symbols.
PAD, BOS, EOS, RAW, END_RAW, COMP, END_COMP = range(7)

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("NANOPROXY_CACHE", HERE / "cache"))
BUILT_IN = ("tinycode", "stdlib", "shakespeare")
TEXT_PIECE = 4096        # bytes: a .txt file is cut into documents of this size, so that some can be held out
HELD_OUT = 0.05          # share of the documents
FIT_BYTES = 8_000_000    # a proxy is fitted on about so much text
PART_BYTES = 1_000_000   # text that a worker encodes and writes at a time

# -----------------------------------------------------------------------------
# corpora


def hash01(text):
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:6], "big") / 2 ** 48


def read_jsonl(path):
    """Yields (line number, row) of a .jsonl[.gz] file of objects. Raises UserError for what is no such file."""
    number = 0
    try:
        with (gzip.open if str(path).endswith(".gz") else open)(path, "rt", encoding="utf-8") as f:
            for number, line in enumerate(f, 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError("not an object")
                    yield number, row
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, OSError, EOFError) as error:
        if isinstance(error, UserError):  # the reader's, about a row
            raise
        raise UserError(f"{path}, near line {max(1, number)}: expected JSON lines ({error})") from None


def pieces(file, longest):
    """A binary file in pieces of at most `longest` bytes, cut behind a newline where one fits, else between UTF-8
    characters. Read bit by bit, so its size does not matter."""
    text, start = b"", 0
    while True:
        if len(text) - start <= longest:
            more = file.read(max(longest, 2 ** 20))
            text, start = text[start:] + more, 0
            if not text:
                return
        end = min(start + longest, len(text))
        if end < len(text):
            line_end = text.rfind(b"\n", start, end) + 1
            while not line_end and end > start + longest - 4 and text[end] & 0xC0 == 0x80:
                end -= 1
            end = line_end or end
        yield text[start:end]
        start = end


def cut_at_lines(text, longest):
    """`text` (bytes) in such pieces, a list."""
    return list(pieces(io.BytesIO(text), longest))


class Source:
    """The documents of `data`: a name in BUILT_IN, a folder of text files, a .txt file, or .jsonl[.gz] rows with `text` or
    `content` and optionally `name`, `view` ("raw" or "comp": the only view ever shown) and `split` ("train" or "val").

    `id` is a hash of its content. Raises UserError where there is nothing to read.
    """
    def __init__(self, data):
        self.data = data
        if data in BUILT_IN:
            path = HERE / "data" / data / "corpus.jsonl"
            if not path.exists() and subprocess.run([sys.executable, str(HERE / "data" / f"{data}.py")]).returncode:
                raise UserError(f"--data={data}: the corpus was not written; see the lines above")
            self.root, self.paths = path.parent, [path]
        else:
            self.root = Path(data)
            if not self.root.exists():
                raise UserError(f"--data={data}: no such file or folder, nor one of {', '.join(BUILT_IN)}"
                                f"{nearest(data, BUILT_IN)}")
            self.paths = [self.root] if self.root.is_file() else sorted(
                p for p in self.root.rglob("*") if p.is_file() and not any(
                    part.startswith(".") for part in p.relative_to(self.root).parts))
        digest, self.n_bytes, texts, binaries = hashlib.sha256(), 0, [], []
        for path in self.paths:
            packed = path.name.endswith(".jsonl.gz")
            try:
                with open(path, "rb") as f:
                    if b"\0" in f.read(8192) and not packed:
                        binaries.append(path)
                        continue
                    f.seek(0)
                    digest.update(os.fsencode(path.relative_to(self.root.parent)) + b"\0")
                    digest.update(hashlib.file_digest(f, "sha256").digest())
            except OSError as error:
                raise UserError(f"--data={data}: cannot read {path} ({error.strerror})") from None
            texts.append(path)
            self.n_bytes += path.stat().st_size * (4 if packed else 1)  # about, for progress bars
        self.paths = texts
        if binaries and texts:
            print(f"data: {len(binaries)} binary files left out, {binaries[0]} the first")
        if not self.n_bytes:
            raise UserError(f"--data={data}: no text in it"
                            + (f", only {len(binaries)} binary files" if binaries else ""))
        self.id = digest.hexdigest()[:12]

    def documents(self):
        """Yields (name, text as bytes, view or None, held out or not)."""
        for name, text, view, split in self.rows():
            yield name, text, view, split == "val" if split else hash01(name) < HELD_OUT

    def rows(self):
        """Yields (name, text as bytes, view or None, split or None)."""
        for path in self.paths:
            name = path.relative_to(self.root).as_posix() if path != self.root else path.name
            if path.name.endswith((".jsonl", ".jsonl.gz")):
                for i, row in read_jsonl(path):
                    text, view, split = row.get("text", row.get("content")), row.get("view"), row.get("split")
                    if not isinstance(text, str):
                        raise UserError(f"{path}, line {i}: expected a string `text` or `content`")
                    if view not in (None, "raw", "comp") or split not in (None, "train", "val"):
                        raise UserError(f"{path}, line {i}: expected `view` raw or comp, `split` train or val")
                    yield str(row.get("name") or f"{name}:{i}"), text.encode("utf-8", "surrogatepass"), view, split
            elif path.suffix == ".txt":
                with open(path, "rb") as f:
                    for i, piece in enumerate(pieces(f, TEXT_PIECE)):
                        yield f"{name}#{i}", piece, None, None
            else:
                yield name, path.read_bytes(), None, None


class Corpus:
    """What --data says: a source, or several with commas between them, each with the share of the text that shall come from
    it (`stdlib:0.7,path/to/folder:0.3`; without these, each counts by its size). Raises UserError."""
    def __init__(self, data):
        named = [(data, None)] if Path(data).exists() else [self.split(part) for part in data.split(",")]
        self.data, weights = data, [weight for _, weight in named]
        if len({weight is None for weight in weights}) > 1 or not all(weight is None or weight > 0 for weight in weights):
            raise UserError(f"--data={data}: expected a weight above 0 for every source, as in a:0.7,b:0.3, or for none")
        self.sources = [Source(name) for name, _ in named]
        self.n_bytes = sum(source.n_bytes for source in self.sources)
        self.weights = None if None in weights else [weight / sum(weights) for weight in weights]
        self.id = self.sources[0].id
        if len(named) > 1:
            self.id = hashlib.sha256(repr([(source.id, w) for source, w in zip(self.sources, weights)]).encode()).hexdigest()[:12]

    @staticmethod
    def split(part):
        """(name, weight or None) of one source."""
        name, _, weight = part.rpartition(":")
        try:
            return (name, float(weight)) if name else (part, None)
        except ValueError:
            return part, None

    def documents(self):
        """Yields (name, text as bytes, view or None, held out or not)."""
        for source in self.sources:
            yield from source.documents()

    def fitting_texts(self):
        """The training documents that a proxy is fitted on: about FIT_BYTES, chosen by the hash of their names."""
        texts = []
        for source, weight in zip(self.sources, self.weights or [source.n_bytes / self.n_bytes for source in self.sources]):
            share = FIT_BYTES * weight / source.n_bytes
            texts += [text for name, text, _, val in source.documents() if not val and hash01(f"fit {name}") < share]
        return texts or [text for _, text, _, _ in itertools.islice(self.documents(), 1000)]

# -----------------------------------------------------------------------------
# the two views on disk


def fitted_proxy(options, corpus):
    """(proxy, path): fitted on the corpus, or read from the cache."""
    proxy = make_proxy(options)
    if proxy is None:
        return None, None
    path = CACHE / corpus.id / f"{proxy.name}.pt"
    if path.exists():
        print(f"proxy: {proxy.name}, cached in {os.path.relpath(path)}")
        return load_proxy(path), path
    print(f"proxy: fitting {proxy.name} on {options.data}")
    settings, relatives = {}, sorted(path.parent.glob("neural-*.pt"))
    if options.proxy == "neural" and relatives:
        settings["lm"] = load_proxy(relatives[0]).lm  # the byte LM does not depend on the coder's options
    proxy.fit(corpus.fitting_texts(), **settings)
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)  # glibc would keep what the training of the byte LM took
    path.parent.mkdir(parents=True, exist_ok=True)
    proxy.save(path)
    return proxy, path


def write_array(path, values):
    """An array's bytes, under a temporary name first. Raises UserError when the disk is full."""
    temporary = Path(f"{path}.{os.getpid()}.tmp")  # a worker that outlived its run may write the same
    try:
        np.asarray(values).tofile(temporary)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error}; what was finished is kept, run again to go on") from None


class Part:
    """Both views of the samples in one folder, memory-mapped: raw.bin and, with the proxy's folder, comp.bin."""
    def __init__(self, folder, comp_folder=None):
        self.folder, self.meta = folder, json.loads((folder / "meta.json").read_text())
        self.raw_symbols = np.memmap(folder / "raw.bin", dtype=np.uint8, mode="r")
        self.raw_offsets = np.memmap(folder / "raw.idx", dtype=np.int64, mode="r")
        self.flags = np.fromfile(folder / "flags.bin", dtype=np.uint8)
        if comp_folder:
            comp_meta = json.loads((comp_folder / "meta.json").read_text())
            self.comp_symbols = np.memmap(comp_folder / "comp.bin", dtype=comp_meta["dtype"], mode="r")
            self.comp_offsets = np.memmap(comp_folder / "comp.idx", dtype=np.int64, mode="r")
            if comp_meta["raw"] != self.meta["id"] or len(self.comp_offsets) != len(self.raw_offsets):
                raise UserError(f"the views in {comp_folder} are another corpus's: expected {self.meta['id']}, found "
                                f"{comp_meta['raw']}; delete that folder and run again")


class Views:
    """Both views of every sample of a corpus, part after part: `raw(i)` bytes and `comp(i)` proxy symbols, as arrays.

    view: uint8 (n,), 0 any, 1 raw only, 2 comp only. val: bool (n,), held out. n_bytes: text bytes of each proxy symbol,
    or None. groups: (first part, weight) of each source; a single one where sources count by their size.
    """
    def __init__(self, parts, n_bytes=None, groups=((0, 1.0),)):
        self.parts, self.n_bytes, self.groups = parts, n_bytes, groups
        self.starts = np.cumsum([0] + [len(part.flags) for part in parts])
        flags = np.concatenate([part.flags for part in parts])
        self.view, self.val = flags & 3, flags & 4 > 0
        self.id = "+".join(part.meta["id"] for part in parts)
        self.text_bytes = sum(part.meta["text_bytes"] for part in parts)

    def __len__(self):
        return len(self.view)

    def part(self, i):
        """(the part that has sample i, its number there)"""
        n = int(np.searchsorted(self.starts, i, side="right")) - 1
        return self.parts[n], i - self.starts[n]

    def raw(self, i):
        part, i = self.part(i)
        return part.raw_symbols[part.raw_offsets[i]:part.raw_offsets[i + 1]]

    def comp(self, i):
        part, i = self.part(i)
        return part.comp_symbols[part.comp_offsets[i]:part.comp_offsets[i + 1]]


def write_raw(source, folder, longest, shard=0, n_shards=1):
    """The samples of every n_shards-th document of a source: raw.bin, raw.idx (offsets), flags.bin; meta.json last, as the
    sign of completeness."""
    offsets, flags, at = array.array("q", [0]), array.array("B"), 0
    temporary, lowest = folder / "raw.bin.tmp", (2, 0, 0)
    try:
        with open(temporary, "wb") as f, tqdm(total=source.n_bytes, desc="samples", unit="B", unit_scale=True,
                                              leave=False) as progress:
            for name, text, view, val in itertools.islice(source.documents(), shard, None, n_shards):
                first = len(flags)
                for piece in cut_at_lines(text, longest):
                    f.write(piece)
                    at += len(piece)
                    offsets.append(at)
                    flags.append({None: 0, "raw": 1, "comp": 2}[view] | 4 * val)
                lowest = min(lowest, (hash01(name), first, len(flags)))
                progress.update(len(text) * n_shards)
        os.replace(temporary, folder / "raw.bin")
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {folder / 'raw.bin'}: {error}; nothing was kept, run again") from None
    flags = np.array(flags)
    if not (flags & 4).any():  # too few documents for the hash to hold one out: take the one that comes first by it
        flags[lowest[1]:lowest[2]] |= 4
    if (flags & 4).all():
        raise UserError(f"--data={source.data}: only one document with text; expected two or more, to hold one out")
    write_array(folder / "raw.idx", np.array(offsets))
    write_array(folder / "flags.bin", flags)
    meta = {"id": f"{source.id}-{folder.name}", "data": source.data, "samples": len(flags), "text_bytes": at}
    write_array(folder / "meta.json", np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8))


def start_worker(folder, proxy_path):
    """In each encoding process: what `encode_part` works with."""
    global worker
    torch.set_num_threads(1)
    worker = Part(folder), load_proxy(proxy_path)


def encode_part(part, comp_folder, first, last):
    """Encode samples first .. last-1 and write them as one part: symbols, and offsets within the part."""
    samples, proxy = worker
    edges = samples.raw_offsets[first:last + 1].tolist()
    text = np.fromfile(samples.folder / "raw.bin", np.uint8, edges[-1] - edges[0], offset=edges[0]).tobytes()
    encoded = proxy.encode_batch([text[a - edges[0]:b - edges[0]] for a, b in itertools.pairwise(edges)])
    write_array(comp_folder / f"{part:06}.idx", np.cumsum([len(symbols) for symbols in encoded], dtype=np.int64))
    write_array(comp_folder / f"{part:06}.bin", np.concatenate(encoded).astype(proxy.dtype))
    return edges[-1] - edges[0]


def write_comp(folder, comp_folder, proxy, proxy_path):
    """The proxy's view of all samples: comp.bin, comp.idx, meta.json. Worker processes write it in parts; a part that
    is on disk is not done again, so an interrupted run goes on where it was."""
    global worker
    samples = Part(folder)
    comp_folder.mkdir(parents=True, exist_ok=True)
    n_parts = max(1, round(samples.meta["text_bytes"] / PART_BYTES))
    edges = np.searchsorted(samples.raw_offsets, np.linspace(0, samples.raw_offsets[-1], n_parts + 1))
    todo = [(part, comp_folder, int(edges[part]), int(edges[part + 1])) for part in range(n_parts)
            if not (comp_folder / f"{part:06}.bin").exists()]
    with tqdm(total=samples.meta["text_bytes"], desc="encoding", unit="B", unit_scale=True, leave=False) as progress:
        if len(todo) <= 1:
            worker = samples, proxy
            for job in todo:
                progress.update(encode_part(*job))
        else:
            try:
                context = get_context("forkserver")  # the workers share one import of torch
                context.set_forkserver_preload(["mix"])
                with ProcessPoolExecutor(min(len(todo), os.cpu_count()), context, start_worker, (folder, proxy_path)) as pool:
                    for n in pool.map(encode_part, *zip(*todo)):
                        progress.update(n)
            except BrokenProcessPool:
                raise UserError("an encoding process was killed (out of memory?); run again to go on") from None
    offsets = [np.zeros(1, dtype=np.int64)]
    try:
        with open(comp_folder / "comp.bin.tmp", "wb") as f:
            for part in range(n_parts):
                offsets.append(np.fromfile(comp_folder / f"{part:06}.idx", dtype=np.int64) + offsets[-1][-1])
                with open(comp_folder / f"{part:06}.bin", "rb") as part_file:
                    shutil.copyfileobj(part_file, f)
        os.replace(comp_folder / "comp.bin.tmp", comp_folder / "comp.bin")
    except OSError as error:
        (comp_folder / "comp.bin.tmp").unlink(missing_ok=True)
        raise UserError(f"cannot write {comp_folder / 'comp.bin'}: {error}; run again to go on") from None
    write_array(comp_folder / "comp.idx", np.concatenate(offsets))
    meta = {"raw": samples.meta["id"], "proxy": proxy.id, "dtype": proxy.dtype.name}
    write_array(comp_folder / "meta.json", np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8))
    for leftover in [*comp_folder.glob("[0-9]*"), *comp_folder.glob("*.tmp")]:
        leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder):
    """Of the processes that want to write into `folder` one does; the others wait, and read."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def parse_shard(shard):
    """(parts, of how many): "2/8" is ([2], 8), "0-3/8" ([0, 1, 2, 3], 8). Raises UserError."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?/(\d+)", shard)
    first, last, n = (int(match[1]), int(match[2] or match[1]), int(match[3])) if match else (0, 0, 0)
    if not first <= last < n:
        raise UserError(f"--shard={shard}: expected a part, such as 2/8 (from 0/8 to 7/8), or a range of them, 0-7/8")
    return range(first, last + 1), n


def prepare(options, block_size):
    """(views, proxy, proxy's path) for `options.data` and `options.proxy`: from the cache, or made now.

    Samples are cut so that a pair, both views and their sentinels, fits in a context: no proxy needs more symbols than
    bytes and its `overhead`. Raises UserError.
    """
    proxy = make_proxy(options)
    longest = (block_size - 4 - (proxy.overhead if proxy else 0)) // 2
    if longest < 32:
        raise UserError(f"block size {block_size}: too small for a pair of views, expected at least 136")
    shards, n_shards = parse_shard(options.shard)
    with locked(CACHE):
        corpus = Corpus(options.data)
    with locked(CACHE / corpus.id):
        proxy, path = fitted_proxy(options, corpus)
    parts, groups = [], []
    for source, weight in zip(corpus.sources, corpus.weights or [1.0] * len(corpus.sources)):
        groups.append((len(parts), weight))
        for shard in shards:
            folder = CACHE / source.id / (f"samples-{longest}" + (f"-{shard}of{n_shards}" if n_shards > 1 else ""))
            with locked(folder):
                if (folder / "meta.json").exists():
                    print(f"corpus: {source.data}, cached in {os.path.relpath(folder)}")
                else:
                    write_raw(source, folder, longest, shard, n_shards)
                comp_folder = folder / f"{path.stem}-{proxy.id}" if proxy else None
                if proxy and (comp_folder / "meta.json").exists():
                    print(f"views: cached in {os.path.relpath(comp_folder)}")
                elif proxy:
                    write_comp(folder, comp_folder, proxy, path)
            parts.append(Part(folder, comp_folder))
    return Views(parts, proxy and proxy.n_bytes, groups if corpus.weights else groups[:1]), proxy, path

# -----------------------------------------------------------------------------
# the mixed stream

MODES = ("translation_random", "translation_raw_compressed", "translation_compressed_raw", "parallel", "sentinel",
         "vanilla")
MIN_ROOM = 16  # symbols: with less room left, a context is padded


@dataclass
class MixOptions(ProxyOptions):
    shard: str = flag("0/1", "parts of the corpus to use, 2/8 or 0-7/8; each part can be prepared on another machine")
    mix: float = flag(0.9, "r, the share of compressed views; 0 is raw bytes only, 1 the proxy only")
    mix_start: float = flag(0.4, "r at the start of its warm-up")
    mix_warmup: float = flag(0.2, "share of the training in which r rises to --mix and pairs are shown")
    raw_phase: float = flag(0.6, "last share of the training, in which r falls to 0")
    pairs: str = flag("warmup", "when pairs are drawn: in the warm-up, or always", choices=("warmup", "always"))
    mode: str = flag("translation_random", "pairs in one order or both; parallel: pairs that can't see each other; "
                     "sentinel: no pairs; vanilla: no pairs and no sentinels", choices=MODES)
    sample_mask: bool = flag(True, "attention stays inside a sample, or a pair")
    seed: int = flag(1337, "of the weights and the batches")

    def check(self):
        """Raises UserError for a mix that is no mix."""
        expect(self, "from 0 to 1", "mix", "mix_start", "mix_warmup", "raw_phase")
        expect(self, "of 0 or more", "seed")
        if self.mix_warmup + self.raw_phase > 1:
            raise UserError(f"--mix_warmup={self.mix_warmup} and --raw_phase={self.raw_phase}: expected a sum of at most 1")
        if self.proxy == "none":
            self.mix = 0.0


def draw_kinds(r, pairs):
    """Probabilities of showing a sample as (raw, comp, pair), so that compressed views are the share r of all views.

    A pair adds a view of either kind, hence the calibration (from the paper).
    """
    if not pairs:
        return 1 - r, r, 0.0
    if r > 0.5:
        return 0.0, 2 - 1 / r, 1 / r - 1
    return 1 - r / (1 - r), 0.0, r / (1 - r)


def between_sentinels(view, raw, comp, n_bytes, mode="sentinel"):
    """A view of a sample between its sentinels: symbols and tails, int64 arrays. raw: its bytes; comp: its proxy symbols;
    n_bytes: the text bytes of each proxy symbol, None where it stands for none."""
    if view == "raw":
        open_, close, body, tails = RAW, END_RAW, raw.astype(np.int64) + BYTE0, pack_tails(raw)
    else:
        open_, close, body, tails = COMP, END_COMP, comp.astype(np.int64) + PROXY0, np.zeros(len(comp), np.int64)
        if n_bytes is not None:  # where each symbol ends in the text
            tails = pack_tails(raw)[np.cumsum(n_bytes[comp]) - 1]
    if mode == "vanilla":
        open_, close = BOS, EOS
    return np.concatenate(([open_], body, [close])), np.concatenate(([0], tails, [0]))


class Mixer:
    """Batches of packed contexts. total_steps: what the schedule of r is stretched over."""
    def __init__(self, views, options, block_size, total_steps, val=False):
        self.views, self.options, self.block_size, self.total_steps = views, options, block_size, total_steps
        pool = np.nonzero(views.val == val)[0]
        view = views.view[pool]
        self.pools = {"raw": pool[view != 2], "comp": pool[view != 1], "pair": pool[view == 0]}
        # weights are shares of the text, so a source of short samples is drawn from more often
        first, weight = zip(*views.groups)
        samples, text = (np.add.reduceat(sizes, first) for sizes in (
            np.diff(views.starts), [part.meta["text_bytes"] for part in views.parts]))
        ends = views.starts[[*first, -1]]
        self.edges = {kind: np.searchsorted(pool, ends) for kind, pool in self.pools.items()}
        self.chances = {kind: np.cumsum(weight * samples / text * (np.diff(edges) > 0)) for kind, edges in self.edges.items()}
        needed = ["raw"] * (options.mix < 1) + ["comp"] * (options.mix > 0)
        if not all(len(self.pools[kind]) for kind in needed):
            raise UserError(f"--data={options.data}: no {'held-out' if val else 'training'} sample may be shown "
                            f"{' and '.join(needed)}; use another --mix or other data")

    def r(self, step):
        """The share of compressed views at `step`."""
        o, done = self.options, step / self.total_steps
        if o.mix in (0.0, 1.0):
            return o.mix
        if done < o.mix_warmup:
            start = min(o.mix_start, o.mix)
            return start + (o.mix - start) * done / o.mix_warmup
        if done > 1 - o.raw_phase:
            return o.mix * (1 - done) / o.raw_phase
        return o.mix

    def raw_share(self, contexts=64):
        """The share of positions behind a raw byte over the whole training, from some contexts spread over it."""
        steps = np.linspace(0, self.total_steps - 1, contexts).astype(int).tolist()
        return sum(self.batch(step, range(1))["raw_first"][1] for step in steps) / contexts / self.block_size

    def draws_pairs(self, step):
        o = self.options
        return (o.mode not in ("sentinel", "vanilla") and 0 < o.mix < 1 and len(self.pools["pair"]) > 0
                and (o.pairs == "always" or step / self.total_steps < o.mix_warmup))

    def draw(self, kind, rng):
        """The number of a sample that may be shown as `kind`."""
        edges, chances, source = self.edges[kind], self.chances[kind], 0
        if len(chances) > 1:
            source = np.searchsorted(chances, rng.random() * chances[-1], side="right")
        return self.pools[kind][rng.integers(edges[source], edges[source + 1])]

    def shown(self, i, view):
        """Sample i between its sentinels: symbols, tails, and the text bytes it stands for."""
        raw = self.views.raw(i)
        comp = self.views.comp(i) if view == "comp" else None
        return *between_sentinels(view, raw, comp, self.views.n_bytes, self.options.mode), len(raw)

    def row(self, step, row, r=None):
        """One context: int64 (block_size + 1,) symbols, targets (-100: none), tails and sample ids, and its text bytes.

        The last sample is cut where the context ends, a pair in both views alike. So whether a sample is taken never
        depends on its length or view, and the share of views comes out as drawn.
        """
        rng = np.random.default_rng((self.options.seed, step, row))
        pairs = self.draws_pairs(step) if r is None else False
        chances = np.cumsum(draw_kinds(self.r(step) if r is None else r, pairs))
        size = self.block_size + 1
        symbols, tails, docs = np.full(size, PAD), np.zeros(size, np.int64), np.zeros(size, np.int64)
        targets, text_bytes, at, doc = np.full(size, -100), 0.0, 0, 0
        while size - at >= MIN_ROOM:
            kind = ("raw", "comp", "pair")[min(2, np.searchsorted(chances, rng.random(), side="right"))]
            i = self.draw(kind, rng)
            order = (kind,)
            if kind == "pair":
                order = ("comp", "raw") if "compressed_raw" in self.options.mode else ("raw", "comp")
                if self.options.mode in ("translation_random", "parallel") and rng.random() < 0.5:
                    order = order[::-1]
            views = [self.shown(i, view) for view in order]
            fit = min(1.0, (size - at) / sum(len(view[0]) for view in views))
            doc += 1
            for n, (s, t, length) in enumerate(views):
                keep = int(len(s) * fit)
                end = at + keep
                symbols[at:end], tails[at:end], docs[at:end] = s[:keep], t[:keep], doc
                targets[at:end - 1] = s[1:keep]
                if n == 0 and len(views) == 2 and fit == 1.0 and self.options.mode != "parallel":
                    targets[end - 1] = views[1][0][0]  # what comes behind the first view of a pair can be learned
                doc += self.options.mode == "parallel"
                text_bytes += length * min(1.0, keep / len(s))
                at = end
        docs[at:] = doc + 1
        if not self.options.sample_mask:
            docs[:] = 0
        return symbols, targets, tails, docs, text_bytes

    def batch(self, step, rows, r=None):
        """Rows `rows` (a range) of the batch of `step`: a dict of x, y, tail, doc, int64 tensors (len(rows), block_size),
        raw_first (see model.py) and text_bytes. r: a fixed share instead of the schedule's, and no pairs (for validation)."""
        columns = list(zip(*[self.row(step, row, r) for row in rows]))
        x, y, tail, doc = (torch.from_numpy(np.stack(column)[:, :-1]) for column in columns[:4])
        return {"x": x, "y": y, "tail": tail, "doc": doc, "raw_first": raw_positions_first(x),
                "text_bytes": sum(columns[4])}


def decode_context(symbols, proxy):
    """The samples in a context: a list of (view, text), text as bytes; None where gzip or its like is cut short."""
    samples = []
    for symbol in np.asarray(symbols).tolist():
        if symbol in (RAW, COMP, BOS):
            samples.append((symbol, []))
        elif symbol >= BYTE0:
            samples[-1][1].append(symbol)
    decoded = []
    for opener, body in samples:
        is_raw = opener == RAW or opener == BOS and all(symbol < PROXY0 for symbol in body)
        try:
            text = bytes(s - BYTE0 for s in body) if is_raw else proxy.decode([s - PROXY0 for s in body])
        except Exception:  # whatever a decompressor makes of half a stream
            text = None
        decoded.append(("raw" if is_raw else "comp", text))
    return decoded


@dataclass
class ShowOptions(MixOptions):
    block_size: int = flag(448, "symbols in a context")
    steps: int = flag(100, "steps of the training that the schedule is for")
    contexts: int = flag(4, "contexts to print, spread over the training")


def show(options):
    options.check()
    expect(options, "above 0", "steps", "contexts")
    views, proxy, _ = prepare(options, options.block_size)
    mixer = Mixer(views, options, options.block_size, options.steps)
    for step in np.linspace(0, options.steps - 1, options.contexts).astype(int).tolist():
        symbols, _, _, _, text_bytes = mixer.row(step, 0)
        print(f"\n\033[1mstep {step} of {options.steps}: r = {mixer.r(step):.2f}, pairs "
              f"{'on' if mixer.draws_pairs(step) else 'off'}, {text_bytes / options.block_size:.2f} text bytes a symbol"
              "\033[0m")
        for view, text in decode_context(symbols, proxy):
            colour, names = ("\033[32m", ("<raw>", "</raw>")) if view == "raw" else ("\033[35m", ("<comp>", "</comp>"))
            shown = text.decode("utf-8", "replace").rstrip("\n") if text is not None else "(cut short, so it can't be decoded)"
            print(f"\033[1m{names[0]}\033[0m{colour}{shown}\033[0m\033[1m{names[1]}\033[0m")


if __name__ == "__main__":
    command_line(show, ShowOptions, description="Prints training contexts as the model sees them, decoded.")
