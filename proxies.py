"""
The proxies: three compressors whose output the model trains on beside raw bytes, and never needs again.

All of them turn bytes into an array of symbols 0 .. n_symbols-1 and back:

- Tokenizer: byte-level BPE. Our trainer, tiktoken's encoder.
- Gzip:      one symbol a byte of the gzip stream. Compresses, but a small change of the text changes everything after
             it, so nothing transfers: the paper's negative example.
- Neural:    a small byte LM drives an arithmetic coder. This is the one to read.

The neural coder works in *windows* of `bits` bits (equal-information windows: Lester et al. 2024, arXiv 2404.03626). A
window is an integer interval [lo, lo+n), at first [0, 2**bits). Reading a byte narrows it to that byte's share, which is
in proportion to the LM's probability; when the next byte's share would be empty, the window is full: it becomes the
symbol `lo`, and a fresh one starts, for the LM too. In text that the LM predicts well, a window holds many bytes.

Which strings share a symbol? If the 256 bytes split all of [lo, lo+n), the first of them inherits `lo`, and so "stop
here" and "go on with that byte" are the same symbol: the paper's *fuzzy* code. We let the window own one codeword, `lo`,
and split only [lo+1, lo+n). Then each symbol stands for exactly one string, and no end marker is needed: the code is
invertible. And since the LM restarts with the window, all strings that a window can hold can be listed once. The coder
becomes a codebook: encoding walks down a trie, decoding is a look-up, and neither runs the LM. Of its codewords those that
the corpus uses become symbols; a string without one is spelled by others.

    python proxies.py 'some text'              the text cut into each proxy's symbols, in colour
    python proxies.py --report --data=stdlib   the proxy table: ratio, speed, exactness, stability
"""
import copy
import gzip
import hashlib
import heapq
import io
import os
import re
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, replace

import numpy as np
import tiktoken
import torch
from tqdm import tqdm

from model import GPT, GPTConfig, UserError, command_line, flag, nearest, pack_tails


@dataclass
class ProxyOptions:
    data: str = flag("tinycode", "corpus: tinycode, stdlib, shakespeare, a folder, a .txt file, .jsonl[.gz] with text or content; or several, a:0.7,b:0.3")
    proxy: str = flag("neural", "compressor: none (raw bytes only), tokenizer, neural or gzip")
    tokenizer: str = flag("1024", "tokenizer proxy: BPE symbols to fit, or the name of a tiktoken encoding (o200k_base)")
    bits: int = flag(12, "neural proxy: bits in a window, 9 to 16; there are 2**bits symbols")
    fuzzy: bool = flag(False, "neural proxy: the paper's many-to-one code in place of the exact one")
    segment: bool = flag(True, "neural proxy: cut the text first, where the LM is uncertain (entropy segmentation)")


class Proxy:
    """A compressor. `kind` is its value of --proxy, `name` what a fitted one is called in the cache.

    Fitted or loaded, it has `n_symbols` and, where each symbol stands for known bytes, `n_bytes`: how many, an int64 array
    (n_symbols,). A code has at most a symbol a byte and `overhead` symbols more. `encode_batch` is `encode` for many
    texts at once; give either.
    """
    kind = ""
    n_symbols = 0
    n_bytes = None
    overhead = 0

    @classmethod
    def from_options(cls, options):
        """An unfitted proxy, from ProxyOptions. Raises UserError for options that are off."""
        return cls()

    @classmethod
    def from_state(cls, state):
        """A fitted proxy, from what `state` returned."""
        return cls()

    def state(self):
        """All that decides how this proxy encodes, as a dict that torch.save takes."""
        return {"proxy": self.kind}

    @property
    def name(self):
        return self.kind

    def fit(self, texts):
        """Learn from `texts`, a list of bytes. Returns self."""
        return self

    def encode(self, text):
        return self.encode_batch([text])[0]

    def encode_batch(self, texts):
        return [self.encode(text) for text in texts]

    def spellings(self):
        """The bytes that each symbol stands for, a list; None for each where that is not known."""
        return [self.decode([symbol]) if self.n_bytes is not None else None for symbol in range(self.n_symbols)]

    def save(self, path):
        write_atomic(path, self.state())

    @property
    def dtype(self):
        """Of the arrays of symbols, and of the views on disk."""
        return np.dtype(np.uint8 if self.n_symbols <= 2 ** 8 else np.uint16 if self.n_symbols <= 2 ** 16 else np.uint32)

    @property
    def id(self):
        """A hash of the state."""
        buffer = io.BytesIO()
        torch.save(self.state(), buffer)
        return hashlib.sha256(buffer.getvalue()).hexdigest()[:12]


def write_atomic(path, state):
    """torch.save to a temporary name, then rename: a reader sees the old file or the new one, never half of one."""
    try:
        torch.save(state, f"{path}.tmp")
        os.replace(f"{path}.tmp", path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        if os.path.exists(f"{path}.tmp"):
            os.remove(f"{path}.tmp")
        raise UserError(f"cannot write {path}: {error}") from None

# -----------------------------------------------------------------------------
# gzip


class Gzip(Proxy):
    kind, n_symbols, overhead = "gzip", 256, 32  # the header, the trailer, and the frame of an incompressible text

    def encode(self, text):
        return np.frombuffer(gzip.compress(text, mtime=0), dtype=np.uint8)

    def decode(self, symbols):
        return gzip.decompress(np.asarray(symbols, dtype=np.uint8).tobytes())

# -----------------------------------------------------------------------------
# the tokenizer

# Words with the space before them, digits by threes, runs of punctuation, runs of white space but for the last space.
PATTERN = r" ?[^\W\d_]+| ?\d{1,3}| ?(?:[^\w\s]|_)+|\s+(?!\S)|\s+"


def train_bpe(texts, n_symbols):
    """Byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909): {bytes: rank}, the 256 bytes first, then the merges.

    Words that occur often are counted once. Each pair knows the words it occurs in, so a merge touches only those, and
    a heap with stale entries finds the next pair: the whole of the standard library takes seconds.
    """
    counts = Counter()
    for text in texts:
        counts.update(re.findall(PATTERN, text.decode("utf-8", "ignore")))
    words = [(list(word.encode()), count) for word, count in counts.items()]
    symbols = [bytes([b]) for b in range(256)]
    pair_counts, where = Counter(), defaultdict(set)
    for i, (word, count) in enumerate(words):
        for pair in zip(word, word[1:]):
            pair_counts[pair] += count
            where[pair].add(i)
    heap = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(heap)
    progress = tqdm(total=n_symbols - 256, desc="BPE merges", leave=False)
    while heap and len(symbols) < n_symbols:
        count, pair = heapq.heappop(heap)
        if -count != pair_counts[pair]:
            continue  # stale: the count has changed since this entry was pushed
        if -count < 2:
            break
        new, changed = len(symbols), set()
        symbols.append(symbols[pair[0]] + symbols[pair[1]])
        for i in where.pop(pair):
            word, times = words[i]
            for p in zip(word, word[1:]):
                pair_counts[p] -= times
                changed.add(p)
            merged, j = [], 0
            while j < len(word):
                if tuple(word[j:j + 2]) == pair:
                    merged.append(new)
                    j += 2
                else:
                    merged.append(word[j])
                    j += 1
            words[i] = merged, times
            for p in zip(merged, merged[1:]):
                pair_counts[p] += times
                where[p].add(i)
                changed.add(p)
        for p in changed:
            if pair_counts[p] > 0:
                heapq.heappush(heap, (-pair_counts[p], p))
        progress.update()
    progress.close()
    return {symbol: rank for rank, symbol in enumerate(symbols)}


class Tokenizer(Proxy):
    kind = "tokenizer"

    def __init__(self, which):
        self.which, known = which, tiktoken.list_encoding_names()
        if which.isdigit():
            if not 256 < int(which) <= 2 ** 20:
                raise UserError(f"--tokenizer={which}: expected 257 to {2 ** 20} symbols, or a tiktoken encoding's name")
        elif which not in known:
            raise UserError(f"--tokenizer={which}: expected a number of symbols or one of {', '.join(known)}"
                            f"{nearest(which, known)}")

    @classmethod
    def from_options(cls, options):
        return cls(options.tokenizer)

    @classmethod
    def from_state(cls, state):
        return cls(state["which"]).use(state["ranks"]) if state["ranks"] else cls(state["which"]).fit([])

    def state(self):
        return {"proxy": self.kind, "which": self.which, "ranks": self.ranks}

    @property
    def name(self):
        return f"tokenizer-{self.which}"

    def fit(self, texts):
        if self.which.isdigit():
            return self.use(train_bpe(texts, int(self.which)))
        try:
            return self.use(None, tiktoken.get_encoding(self.which))
        except Exception as error:  # a download: whatever the network throws
            raise UserError(f"--tokenizer={self.which}: tiktoken could not fetch it ({type(error).__name__}); give a "
                            "number of symbols to fit one here") from None

    def use(self, ranks, encoding=None):
        """Set up from merge ranks, {bytes: rank}."""
        self.ranks = ranks
        self.encoding = encoding or tiktoken.Encoding("nanoproxy", pat_str=PATTERN, mergeable_ranks=ranks,
                                                      special_tokens={})
        self.n_symbols = self.encoding.max_token_value + 1
        self.n_bytes = np.zeros(self.n_symbols, dtype=np.int64)
        for token in self.encoding.token_byte_values():
            self.n_bytes[self.encoding.encode_single_token(token)] = len(token)
        return self

    def encode(self, text):
        """tiktoken encodes str; bytes that are not UTF-8 become one-byte tokens."""
        symbols, encode = [], self.encoding.encode_ordinary
        while True:
            try:
                return np.array(symbols + encode(text.decode()), dtype=self.dtype)
            except UnicodeDecodeError as error:
                symbols += encode(text[:error.start].decode())
                symbols += [self.encoding.encode_single_token(text[i:i + 1]) for i in range(error.start, error.end)]
                text = text[error.end:]

    def decode(self, symbols):
        return self.encoding.decode_bytes(np.asarray(symbols).tolist())

# -----------------------------------------------------------------------------
# the neural proxy

BOS = 256         # the LM's own start symbol
CHUNK = 128       # bytes the LM sees at once
LONGEST = 48      # bytes a window may hold
KEEP_BYTES = 2_000_000  # of text decide which codewords become symbols
# One layer is enough, since the n-gram features carry most of what a byte depends on, at the price of a look-up.
LM_CONFIG = GPTConfig(vocab_size=257, n_layer=1, n_embd=64, n_head=2, mlp_hidden=128, block_size=CHUNK, ngram=6,
                      ngram_buckets=2 ** 15)


def lm_inputs(text):
    """The LM's symbols and tails for `text`, a long tensor (B, T): shifted right behind BOS."""
    bos = torch.full_like(text[:, :1], BOS)
    return torch.cat((bos, text[:, :-1]), 1), torch.cat((bos * 0, pack_tails(text[:, :-1])), 1)


def train_lm(texts, steps=400, batch_size=64, lr=4e-3, seed=1337):
    """The byte LM, trained on random stretches of CHUNK bytes: a window may start anywhere."""
    data = torch.frombuffer(bytearray(b"".join(texts)), dtype=torch.uint8)
    if len(data) <= CHUNK:
        data = data.repeat(CHUNK // max(1, len(data)) + 2)
    draw = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        lm = GPT(LM_CONFIG)
    optimizer = torch.optim.AdamW(lm.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    progress = tqdm(range(steps), desc="byte LM", leave=False)
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = lr * min((step + 1) / 50, 1.0, (steps - step) / steps * 1.5)
        start = torch.randint(len(data) - CHUNK, (batch_size, 1), generator=draw)
        text = data[start + torch.arange(CHUNK)].long()
        idx, tail = lm_inputs(text)
        loss = lm(idx, text, tail=tail).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            progress.set_postfix_str(f"{loss.item() / np.log(2):.2f} bits a byte")
    return lm.eval()


@torch.inference_mode()
def probabilities(lm, strings):
    """The LM's p of the byte after each of `strings`, uint8 (N, d), at the start of a window: an array (N, 256)."""
    result = []
    for part in torch.from_numpy(strings.copy()).long().split(8192):
        idx, tail = lm_inputs(torch.cat((part, part.new_zeros(len(part), 1)), 1))
        result.append(torch.softmax(lm(idx, tail=tail)[:, -1, :256], -1))
    return torch.cat(result).numpy()


def split(n, p, own, fresh):
    """Edges of the 256 shares of intervals of n codewords (N,): int64 (N, 257), in codewords from each interval's lo.

    p: the LM's probabilities, float64 (N, 256). own: codewords that mean "stop here", 1, or 0 for the fuzzy code.
    fresh: in a fresh window each byte gets at least one codeword, so every string has a code and there are no literals.
    """
    least = np.arange(257) * fresh
    share = n[:, None] - own - 256 * fresh
    edges = np.zeros((len(p), 257))
    edges[:, 1:] = np.cumsum(p, axis=1)
    edges /= edges[:, -1:]
    return own + least + np.floor(edges * share).astype(np.int64)


class Neural(Proxy):
    kind = "neural"

    def __init__(self, bits=12, fuzzy=False, segment=True):
        if not 9 <= bits <= 16:
            raise UserError(f"--bits={bits}: expected 9 to 16, so that a window has room for each of the 256 bytes")
        self.bits, self.fuzzy, self.segment = bits, fuzzy, segment
        self.window, self.own = 2 ** bits, 0 if fuzzy else 1  # codewords
        self.lm, self.threshold = None, 0.0

    @classmethod
    def from_options(cls, options):
        return cls(options.bits, options.fuzzy, options.segment)

    @classmethod
    def from_state(cls, state):
        proxy = cls(state["bits"], state["fuzzy"], state["segment"])
        proxy.lm, proxy.threshold = GPT(LM_CONFIG).eval(), state["threshold"]
        proxy.lm.load_state_dict(state["lm"])
        return proxy.use(*[column.numpy() for column in state["nodes"]], state["kept"].numpy())

    def state(self):
        return {"proxy": self.kind, "bits": self.bits, "fuzzy": self.fuzzy, "segment": self.segment,
                "threshold": self.threshold, "lm": self.lm.state_dict(),
                "nodes": [torch.from_numpy(column) for column in self.nodes], "kept": torch.from_numpy(self.kept)}

    @property
    def name(self):
        return f"neural-{self.bits}" + "-fuzzy" * self.fuzzy + "-whole" * (not self.segment)

    def fit(self, texts, cut_rate=0.1, lm=None):
        """Train the LM (or take `lm`), place the threshold so that `cut_rate` of the bytes start a segment, list the
        codebook, and keep of it what about KEEP_BYTES of the texts use. Returns self."""
        self.lm = lm or train_lm(texts)
        if self.segment:
            self.threshold = float(np.quantile(np.concatenate(self.entropies(texts[:2000])), 1 - cut_rate))
        parents, last, codewords = self.list_codebook()
        sample = texts[::max(1, sum(map(len, texts)) // KEEP_BYTES)]
        used = np.concatenate(self.use(parents, last, codewords, np.arange(self.window)).encode_batch(sample))
        return self.use(parents, last, codewords, np.union1d(used, codewords[1:][parents[1:] == 0]))

    def list_codebook(self):
        """All strings that a window can hold, a level of the trie at a time: parents, bytes and codewords of the nodes.

        Node 0 is the empty string. A node with room for more than its own codeword is asked for its children. In float64,
        so that the codebook does not depend on how a machine orders its float32 sums.
        """
        lm = copy.deepcopy(self.lm).double()
        parents, last, codewords = [[0]], [[0]], [[0]]
        strings, lo, n, ids, total = np.zeros((1, 0), np.uint8), np.array([0]), np.array([self.window]), [0], 1
        progress = tqdm(desc="codebook", total=self.window, leave=False)
        while len(ids) and strings.shape[1] < LONGEST:
            edges = split(n, probabilities(lm, strings), self.own, fresh=total == 1)
            node, byte = np.nonzero(edges[:, 1:] > edges[:, :-1])
            first, size = edges[node, byte], edges[node, byte + 1] - edges[node, byte]
            parents.append(np.asarray(ids)[node])
            last.append(byte)
            codewords.append(lo[node] + first)
            more = size > 1
            strings = np.concatenate((strings[node], byte[:, None].astype(np.uint8)), 1)[more]
            lo, n, ids = codewords[-1][more], size[more], (total + np.arange(len(node)))[more]
            total += len(node)
            progress.update(len(node))
        progress.close()
        return [np.concatenate(column).astype(np.int32) for column in (parents, last, codewords)]

    def use(self, parents, last, codewords, kept):
        """Set up from the nodes of the trie. kept: the codewords that are symbols. A corpus may use few of 2**bits, and
        each would widen the model's output layer. A string without one is spelled: its longest beginning that has one, then the
        rest on its own."""
        self.nodes, self.kept, self.n_symbols = (parents, last, codewords), kept, len(kept)
        self.children = dict(zip((parents.astype(np.int64) << 8 | last).tolist()[1:], range(1, len(parents))))
        symbol_of = dict(zip(kept.tolist(), range(len(kept))))
        self.strings, self.symbols, of_node = [b""] * len(kept), [[]], [b""]
        for parent, byte, codeword in zip(parents.tolist()[1:], last.tolist()[1:], codewords.tolist()[1:]):
            of_node.append(of_node[parent] + bytes([byte]))
            if codeword in symbol_of:
                self.symbols.append([symbol_of[codeword]])
                self.strings[symbol_of[codeword]] = of_node[-1]  # of the fuzzy code's many the longest
            else:
                while int(codewords[parent]) not in symbol_of:
                    parent = parents[parent]
                spelled = self.symbols[parent][:]
                self.walk(of_node[-1][len(of_node[parent]):], spelled)
                self.symbols.append(spelled)
        if not self.fuzzy:
            self.n_bytes = np.array([len(string) for string in self.strings])
        return self

    def walk(self, text, out):
        """Append to `out` the symbols of `text`, coded on its own: down the trie, from the root again when it ends."""
        child_of, symbols, node = self.children.get, self.symbols, 0
        for byte in text:
            child = child_of(node << 8 | byte)
            if child is None:
                out += symbols[node]
                child = child_of(byte)
            node = child
        out += symbols[node]

    def encode_batch(self, texts):
        symbols = []
        for text, cuts in zip(texts, self.cuts(texts)):
            out = []
            for start, end in zip(cuts, cuts[1:]):
                self.walk(text[start:end], out)
            symbols.append(np.array(out, dtype=self.dtype))
        return symbols

    def decode(self, symbols):
        return b"".join([self.strings[symbol] for symbol in np.asarray(symbols).tolist()])

    def cuts(self, texts):
        """Where the segments of each text start, and its end. The LM's uncertainty about a byte makes it start one
        (from the paper); after the cut the coder knows nothing of what came before, so what is equal is coded equally."""
        if not self.segment:
            return [[0, len(text)] for text in texts]
        return [[0, *(np.nonzero(h[1:] > self.threshold)[0] + 1).tolist(), len(text)]
                for text, h in zip(texts, self.entropies(texts))]

    @torch.inference_mode()
    def entropies(self, texts):
        """The LM's entropy before each byte, in nats: a float32 array per text.

        Its context restarts with each line. With a restart every so many bytes, a deletion would move all cuts behind it:
        at 12 bits 1 % of deletions then changed 14 % of the symbols of the standard library, and so it is 5 %.
        """
        pieces = [line[i:i + CHUNK] for text in texts for line in text.splitlines(keepends=True)
                  for i in range(0, len(line), CHUNK)]
        entropy, start = [np.zeros(0, np.float32)] * len(pieces), 0
        order = sorted(range(len(pieces)), key=lambda i: len(pieces[i]))  # pieces of like length share a batch
        while start < len(order):
            batch = order[start:start + 16]
            longest = len(pieces[batch[-1]])
            rows = b"".join(pieces[i].ljust(longest, b"\0") for i in batch)
            idx, tail = lm_inputs(torch.frombuffer(bytearray(rows), dtype=torch.uint8).view(-1, longest).long())
            log_p = torch.log_softmax(self.lm(idx, tail=tail), -1)
            for i, h in zip(batch, -(log_p.exp() * log_p).sum(-1).numpy()):
                entropy[i] = h[:len(pieces[i])]
            start += len(batch)
        joined = np.concatenate([np.zeros(0, np.float32), *entropy])
        return np.split(joined, np.cumsum([len(text) for text in texts])[:-1])

    def encode_by_interval(self, text):
        """One segment's codewords by the definition: narrow the interval, byte by byte, asking the LM each time. Slow; the
        codebook is tested against it."""
        lm, out, window, lo, n = copy.deepcopy(self.lm).double(), [], b"", 0, self.window
        for byte in text:
            while True:
                string = np.frombuffer(window, dtype=np.uint8)[None]
                edges = split(np.array([n]), probabilities(lm, string), self.own, fresh=not window)[0]
                size = int(edges[byte + 1] - edges[byte])
                if size and n > 1 and len(window) < LONGEST:
                    break
                out.append(lo)
                window, lo, n = b"", 0, self.window
            window, lo, n = window + bytes([byte]), lo + int(edges[byte]), size
        return out + [lo] * bool(window)

# -----------------------------------------------------------------------------
# all of them; a proxy of your own is a class, and its line here

PROXIES = {proxy.kind: proxy for proxy in (Tokenizer, Neural, Gzip)}


def make_proxy(options):
    """The unfitted proxy that the ProxyOptions ask for, None for raw bytes only. Raises UserError."""
    kinds = ["none", *PROXIES]
    if options.proxy not in kinds:
        raise UserError(f"--proxy={options.proxy}: expected one of {', '.join(kinds)}{nearest(options.proxy, kinds)}")
    return PROXIES[options.proxy].from_options(options) if options.proxy != "none" else None


def load_proxy(path):
    """The proxy saved at `path`. Raises UserError if that is no proxy file."""
    try:
        state = torch.load(path, weights_only=True)
        return PROXIES[state["proxy"]].from_state(state)
    except UserError:
        raise
    except Exception as error:  # whatever a broken file makes torch throw
        raise UserError(f"{path} is not a proxy that this version wrote ({type(error).__name__}); delete it and run "
                        "again") from None

# -----------------------------------------------------------------------------
# the proxy table


def levenshtein(a, b):
    """Edit distance of two arrays over the longer one's length. The classic recurrence a row at a time: what depends on
    the left neighbour is a running minimum (Levenshtein 1966)."""
    if not len(a) or not len(b):
        return float(len(a) != len(b))
    steps = np.arange(len(b) + 1)
    row = steps
    for symbol in a:
        best = np.minimum(row[1:] + 1, row[:-1] + (b != symbol))
        row = np.minimum.accumulate(np.concatenate(([row[0] + 1], best)) - steps) + steps
    return row[-1] / max(len(a), len(b))


def stability(proxy, texts, rate, seed=0):
    """Mean distance between the symbols of each text and of the text with the share `rate` of its bytes deleted,
    the paper's measure."""
    rng = np.random.default_rng(seed)
    shorter = [bytes(b for b, keep in zip(text, rng.random(len(text)) >= rate) if keep) for text in texts]
    return float(np.mean([levenshtein(a, b) for a, b in zip(proxy.encode_batch(texts), proxy.encode_batch(shorter))]))


def collisions(proxy, texts):
    """Of the distinct strings that are coded on their own (segments): the share that has its code in common with
    another, and the shares of such pairs with a common prefix of at least 0.8 of the longer string, and that are the same
    but for white space."""
    by_code = defaultdict(set)
    for text, cuts in zip(texts, proxy.cuts(texts)):
        for start, end in zip(cuts, cuts[1:]):
            out = []
            proxy.walk(text[start:end], out)
            by_code[tuple(out)].add(text[start:end])
    groups = [sorted(strings) for strings in by_code.values() if len(strings) > 1]
    pairs = [(a, b) for group in groups for i, a in enumerate(group) for b in group[i + 1:]]
    close = [len(os.path.commonprefix((a, b))) >= 0.8 * max(len(a), len(b)) for a, b in pairs]
    white = [b"".join(a.split()) == b"".join(b.split()) for a, b in pairs]
    return (sum(map(len, groups)) / max(1, sum(map(len, by_code.values()))), sum(close) / max(1, len(pairs)),
            sum(white) / max(1, len(pairs)))


def seconds(work, *arguments):
    """The best of three runs after a warm-up."""
    times = []
    for _ in range(4):
        start = time.perf_counter()
        work(*arguments)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def table_row(proxy, texts):
    """A line of the proxy table."""
    n_bytes, encoded = sum(map(len, texts)), proxy.encode_batch(texts)
    n_symbols = sum(map(len, encoded))
    exact = np.mean([proxy.decode(symbols) == text for symbols, text in zip(encoded, texts)])
    singles = "" if proxy.n_bytes is None else f"{(proxy.n_bytes[np.concatenate(encoded)] == 1).mean():7.1%}"
    speed = n_bytes / seconds(proxy.encode_batch, texts) / 1e6
    bare, strings = "", [text.decode("utf-8", "ignore") for text in texts]
    if isinstance(proxy, Tokenizer):
        bare = seconds(lambda: [proxy.encoding.encode_ordinary(string) for string in strings])
    if isinstance(proxy, Gzip):
        bare = seconds(lambda: [gzip.compress(text, mtime=0) for text in texts])
    if bare:
        bare = f"{speed / (n_bytes / bare / 1e6):.2f}"
    drift = [stability(proxy, texts[:60], rate) for rate in (0.01, 0.1)]
    bits = np.log2(proxy.n_symbols) * n_symbols / n_bytes
    return (f"{proxy.name:22} {n_bytes / n_symbols:12.2f} {bits:9.2f} {speed:8.2f} {bare:>7} {exact:8.1%} "
            f"{singles:>8} {drift[0]:9.3f} {drift[1]:9.3f}")


def report(options, corpus, fitted):
    from mix import cut_at_lines
    texts = [piece for _, text, _, val in corpus.documents() if val for piece in cut_at_lines(text, 2048)]
    texts = texts[::max(1, sum(map(len, texts)) // 500_000)]
    rows = [dict(proxy="tokenizer", tokenizer=size) for size in ("1024", "4096", "16384")]
    rows += [dict(bits=bits, segment=segment) for segment in (True, False) for bits in (9, 12, 16)]
    rows += [dict(bits=12, fuzzy=True), dict(bits=16, fuzzy=True), dict(proxy="gzip")]
    chosen = [fitted(replace(options, **{"proxy": "neural"} | changes)) for changes in rows]
    print(f"\n{options.data}: {len(texts)} held-out samples, {sum(map(len, texts)) / 1e6:.2f} MB; "
          f"{torch.get_num_threads()} cores\n{'':22} {'bytes/symbol':>12} {'bits/byte':>9} {'MB/s':>8} {'of bare':>7} {'exact':>8} {'1-byte':>8} "
          f"{'drift 1%':>9} {'drift 10%':>9}")
    for proxy in chosen:
        print(table_row(proxy, texts), flush=True)
    print("\nof bare: speed over that of the bare tiktoken or gzip call. exact: samples decoded as they were.\n"
          "1-byte: symbols that stand for one byte. drift: edit distance of the symbols, over their number,\n"
          "after 1 % or 10 % of the bytes are deleted. -whole: without segmentation.")
    for proxy in chosen:
        if getattr(proxy, "fuzzy", False):
            share, close, white = collisions(proxy, texts)
            print(f"{proxy.name}: {share:.1%} of the distinct segments share their code with another,\n"
                  f"{close:.1%} of such pairs have a common prefix of at least 0.8; {white:.1%} differ in white space alone.")


def show(options, fitted):
    """The text, its symbols on alternating backgrounds."""
    text = options.text.encode("utf-8", "surrogateescape")
    for kind in ("tokenizer", "neural", "gzip"):
        proxy = fitted(replace(options, proxy=kind))
        symbols = proxy.encode(text)
        print(f"\n\033[1m{proxy.name}: {len(text)} bytes, {len(symbols)} symbols, "
              f"{len(text) / max(1, len(symbols)):.2f} bytes a symbol\033[0m")
        if kind == "gzip":
            print(f"a symbol stands for no piece of the text: {symbols[:12].tolist()} ...")
            continue
        pieces = [proxy.decode([symbol]).decode("utf-8", "replace").replace("\n", "⏎\n") for symbol in symbols]
        print("".join(f"\033[{(30, 97)[i % 2]};{(46, 44)[i % 2]}m{piece}" for i, piece in enumerate(pieces)) + "\033[0m")


@dataclass
class ShowOptions(ProxyOptions):
    text: str = flag(None, "text to cut into symbols", positional=True, nargs="?")
    report: bool = flag(False, "print the proxy table for --data instead")


def main(options):
    if options.text is None and not options.report:
        raise UserError("expected a text to cut into symbols, or --report")
    import mix  # it stands below this file, which needs it only here, for a corpus to show the proxies on
    corpus = mix.Corpus(options.data)

    def fitted(changed):
        return mix.fitted_proxy(changed, corpus)[0]
    report(options, corpus, fitted) if options.report else show(options, fitted)


if __name__ == "__main__":
    import proxies  # not __main__, so that there is one class Neural
    command_line(proxies.main, ShowOptions, description="Shows what the proxies do to a text or a corpus.")
