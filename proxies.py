"""
The proxies: three compressors whose symbols the model trains on beside raw bytes, and never
needs again.

Each turns bytes into an array of symbols, 0 .. n_symbols - 1, and back:

- Tokenizer: byte-pair encoding. The trainer is below, tiktoken encodes.
- Neural:    a small byte LM drives an arithmetic coder. This is the one to read.
- Gzip:      the bytes of the gzip stream. Each refers back to text that came before, and their bits
             are packed across byte borders: change one byte of a text, and the whole stream after
             it is another. So there is nothing stable to learn: the paper's negative example.

The neural coder works in *windows* of `bits` bits (equal-information windows: Lester et al. 2024,
arXiv 2404.03626). A window is an interval of 2**bits codewords, and each byte of the text narrows
it to that byte's share, which is in proportion to the byte LM's probability. When the next byte's
share is empty the window is full: its first codeword becomes a symbol, and a fresh window starts,
for the LM too. Where the LM predicts the text well, the interval shrinks slowly, and one symbol
holds many bytes.

A window of 16 codewords, letters a, b, c that always have the probabilities 1/2, 1/4, 1/4, and the
text "aab", in our *exact* code and in the paper's *fuzzy* one:

                  exact                                    fuzzy
    fresh         [0, 16)                                  [0, 16)
    after "a"     [1, 8), and b [8, 12), c [12, 16)        [0, 7), and b [7, 11), c [11, 16)
    after "aa"    [2, 5), and ab [5, 6), ac [6, 8)         [0, 3), and ab [3, 5), ac [5, 7)
    then "b"      no share: "aa" is symbol 2               [1, 2): "aab" is symbol 1

In the fuzzy code the letters share all of an interval, so the first of them inherits its first
codeword: 0 stands for "a", for "aa" and for "aaa". The decoder cannot know where the window
stopped. In the exact code a window keeps its first codeword for itself, "stop here", and the
letters share the rest. Then each codeword stands for exactly one string, and no end marker is
needed.

Since the LM starts anew with each window, all strings that a window can hold can be listed once.
The coder becomes a codebook: encoding walks down a trie, decoding looks up, and neither runs the
LM. The codewords that the corpus uses become symbols; a string whose codeword is not among them is
respelled.

    python proxies.py 'some text'              the text cut into each proxy's symbols, in colour
    python proxies.py --report --data=stdlib   ratio, speed and stability of each, on a corpus
"""
import copy
import gzip
import hashlib
import io
import os
from dataclasses import dataclass, replace

import numpy as np
import tiktoken
import torch
import torch.nn.functional as F
from tqdm import tqdm

from lib import store
from lib.bpe import PATTERN, train_bpe
from lib.corpus import BUILT_IN, Corpus, cut_at_lines
from lib.options import UserError, command_line, did_you_mean, expect_one_of, flag
from lib.proxy_table import print_proxy_table, show_symbols
from lib.trie import Trie
from lib.suffix import pack_suffix
from model import GPT, GPTConfig


class Proxy:
    """A compressor. `kind` is its value of --proxy; `name` is what a fitted one is called in the
    cache.

    Fitted or loaded, it has `n_symbols` and, if each symbol stands for known bytes,
    `symbol_lengths`: how many, an int64 array (n_symbols,). A code has at most one symbol a byte,
    and `overhead` more.
    """
    kind = ""
    n_symbols = 0
    symbol_lengths = None
    overhead = 0
    report_variants = ({},)  # the options that --report compares it with, beside those it is given

    @classmethod
    def from_options(cls, options):
        """An unfitted proxy, from ProxyOptions. Raises UserError for options that are off."""
        return cls()

    @classmethod
    def from_state(cls, state):
        """A fitted proxy, from what `state` returned."""
        return cls()

    def state(self):
        """All that decides how this proxy encodes: a dict that torch.save takes."""
        return {"proxy": self.kind}

    @property
    def name(self):
        return self.kind

    def fit(self, texts):
        """Learn from `texts`, a list of bytes. Returns self."""
        return self

    def encode(self, text):
        """The symbols (n,) of a text, bytes."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts):
        """The symbols of each text, a list. A proxy defines this or `encode`."""
        return [self.encode(text) for text in texts]

    def symbol_bytes(self):
        """The bytes that each symbol stands for, a list; None for each if that is not known."""
        if self.symbol_lengths is None:
            return [None] * self.n_symbols
        return [self.decode([symbol]) for symbol in range(self.n_symbols)]

    def save(self, path):
        store.write_torch(path, self.state())

    @property
    def dtype(self):
        """The smallest dtype that holds every symbol; views are stored in it."""
        if self.n_symbols <= 2 ** 8:
            return np.dtype(np.uint8)
        return np.dtype(np.uint16 if self.n_symbols <= 2 ** 16 else np.uint32)

    @property
    def id(self):
        """A hash of the state."""
        buffer = io.BytesIO()
        torch.save(self.state(), buffer)
        return hashlib.sha256(buffer.getvalue()).hexdigest()[:12]


# -----------------------------------------------------------------------------
# gzip


class Gzip(Proxy):
    kind = "gzip"
    n_symbols = 256
    overhead = 32  # header, trailer, and the frame around a text that does not compress

    def encode(self, text):
        return np.frombuffer(self.bare_encode(text), dtype=np.uint8)

    def bare_encode(self, text):
        return gzip.compress(text, mtime=0)

    def decode(self, symbols):
        return gzip.decompress(np.asarray(symbols, dtype=np.uint8).tobytes())


# -----------------------------------------------------------------------------
# the tokenizer


class Tokenizer(Proxy):
    kind = "tokenizer"
    report_variants = ({"tokenizer": "1024"}, {"tokenizer": "4096"}, {"tokenizer": "16384"})

    def __init__(self, which):
        """which: how many symbols to fit, as a string of digits, or the name of a tiktoken
        encoding."""
        self.which = which
        known = tiktoken.list_encoding_names()
        if which.isdigit():
            if not 256 < int(which) <= 2 ** 20:
                raise UserError(f"--tokenizer={which}: expected 257 to {2 ** 20} symbols, or the "
                                "name of a tiktoken encoding")
        elif which not in known:
            raise UserError(f"--tokenizer={which}: expected a number of symbols or one of "
                            f"{', '.join(known)}{did_you_mean(which, known)}")

    @classmethod
    def from_options(cls, options):
        return cls(options.tokenizer)

    @classmethod
    def from_state(cls, state):
        proxy = cls(state["which"])
        if state["ranks"] is None:  # tiktoken's own encoding
            return proxy.fit([])
        return proxy.build(state["ranks"])

    def state(self):
        return {"proxy": self.kind, "which": self.which, "ranks": self.ranks}

    @property
    def name(self):
        return f"tokenizer-{self.which}"

    def fit(self, texts):
        if self.which.isdigit():
            return self.build(train_bpe(texts, int(self.which)))
        try:
            return self.build(None, tiktoken.get_encoding(self.which))
        except Exception as error:  # a download: whatever the network throws
            raise UserError(f"--tokenizer={self.which}: tiktoken could not fetch it "
                            f"({type(error).__name__}: {error}); give a number of symbols to fit "
                            "one here") from None

    def build(self, ranks, encoding=None):
        """Set up from merge ranks, {bytes: rank}, or from an encoding of tiktoken's. Returns
        self."""
        self.ranks = ranks
        self.encoding = encoding or tiktoken.Encoding(
            "nanoproxy", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
        self.n_symbols = self.encoding.max_token_value + 1
        self.symbol_lengths = np.zeros(self.n_symbols, dtype=np.int64)
        for token in self.encoding.token_byte_values():
            symbol = self.encoding.encode_single_token(token)
            self.symbol_lengths[symbol] = len(token)
        return self

    def encode(self, text):
        """tiktoken encodes str; bytes that are not UTF-8 become tokens of one byte."""
        symbols = []
        while True:
            try:
                symbols += self.encoding.encode_ordinary(text.decode())
                return np.array(symbols, dtype=self.dtype)
            except UnicodeDecodeError as error:
                symbols += self.encoding.encode_ordinary(text[:error.start].decode())
                for byte in text[error.start:error.end]:
                    symbols.append(self.encoding.encode_single_token(bytes([byte])))
                text = text[error.end:]

    def bare_encode(self, text):
        return self.encoding.encode_ordinary(text.decode("utf-8", "ignore"))

    def decode(self, symbols):
        return self.encoding.decode_bytes(np.asarray(symbols).tolist())


# -----------------------------------------------------------------------------
# the neural proxy: its byte LM

LM_BOS = 256   # the LM's start symbol, after the 256 bytes
LM_BYTES = 128  # bytes that the LM sees at once
# one layer is enough: the n-gram features carry most of what a byte depends on, for a look-up
LM_CONFIG = GPTConfig(vocab_size=257, n_layer=1, n_embd=64, n_head=2, mlp_hidden=128,
                      block_size=LM_BYTES, ngram=6, ngram_buckets=2 ** 15)


def lm_inputs(text):
    """What the LM reads to predict each byte of `text` (B, T): symbols and suffixes, one step
    behind."""
    bos = torch.full_like(text[:, :1], LM_BOS)
    no_text = torch.zeros_like(bos)
    before = text[:, :-1]
    return torch.cat((bos, before), dim=1), torch.cat((no_text, pack_suffix(before)), dim=1)


def train_lm(texts, steps=400, batch_size=64, lr=4e-3, seed=1337):
    """The byte LM, trained on random stretches of LM_BYTES bytes: a window may start anywhere."""
    data = torch.frombuffer(bytearray(b"".join(texts)), dtype=torch.uint8)
    if len(data) <= LM_BYTES:
        data = data.repeat(LM_BYTES // max(1, len(data)) + 2)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        lm = GPT(LM_CONFIG)
    optimizer = torch.optim.AdamW(lm.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    progress = tqdm(range(steps), desc="byte LM", leave=False, disable=None)
    for step in progress:
        warmup = (step + 1) / 50
        decay = 1.5 * (steps - step) / steps
        for group in optimizer.param_groups:
            group["lr"] = lr * min(warmup, 1.0, decay)
        start = torch.randint(len(data) - LM_BYTES, (batch_size, 1), generator=generator)
        text = data[start + torch.arange(LM_BYTES)].long()  # (B, T)
        idx, suffix = lm_inputs(text)
        logits = lm(idx, suffix=suffix)
        loss = F.cross_entropy(logits.flatten(0, 1), text.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            progress.set_postfix_str(f"{loss.item() / np.log(2):.2f} bits a byte")
    return lm.eval()


@torch.inference_mode()
def next_byte_probabilities(lm, strings):
    """p (N, 256) of the byte after each of `strings`, uint8 (N, length), at the start of a
    window."""
    p = []
    for some_strings in torch.from_numpy(strings.copy()).long().split(8192):
        any_byte = some_strings.new_zeros(len(some_strings), 1)  # the one that is predicted
        idx, suffix = lm_inputs(torch.cat((some_strings, any_byte), dim=1))
        logits = lm(idx, suffix=suffix)[:, -1, :256]
        p.append(torch.softmax(logits, dim=-1))
    return torch.cat(p).numpy()


# -----------------------------------------------------------------------------
# the neural proxy: its codebook

LONGEST = 48  # bytes that a window may hold


def split(sizes, p, own, fresh):
    """Divide intervals among the bytes: the edges (N, bytes + 1) of their shares, as offsets,
    int64.

    sizes: the codewords in each interval (N,). p: the probabilities of the bytes, float64 (N,
    bytes). own: 1 in the exact code, where the interval keeps its first codeword, 0 in the fuzzy
    one. fresh: in a fresh window each byte gets at least one codeword, so that every text has a
    code.

    The example at the top: 16 codewords, fresh, exact. One is the window's own, each of the three
    letters has one for certain, and the other 12 are shared: 6, 3 and 3. So the edges are 1, 8, 12,
    16.
    """
    n_bytes = p.shape[1]
    certain = 1 if fresh else 0
    shared = sizes - own - certain * n_bytes  # (N,)
    cumulative = np.zeros((len(p), n_bytes + 1))
    cumulative[:, 1:] = np.cumsum(p, axis=1)
    cumulative /= cumulative[:, -1:]
    shares = np.floor(cumulative * shared[:, None]).astype(np.int64)
    return own + certain * np.arange(n_bytes + 1) + shares


def list_codebook(lm, window, own):
    """The Trie of a window of so many codewords, a length at a time.

    A string that has more codewords than its own is a parent: the LM says how its bytes share the
    rest. In float64, so that the codebook does not depend on the order in which a machine sums.
    """
    lm = copy.deepcopy(lm).double()
    parent, byte, codeword = [np.zeros(1, int)], [np.zeros(1, int)], [np.zeros(1, int)]
    # the strings of the present length that may still grow: their nodes, bytes and intervals
    nodes = np.zeros(1, int)
    strings = np.zeros((1, 0), np.uint8)
    first, sizes = np.zeros(1, int), np.array([window])
    n_nodes = 1
    progress = tqdm(desc="codebook", total=window, leave=False, disable=None)
    while len(nodes) > 0 and strings.shape[1] < LONGEST:
        p = next_byte_probabilities(lm, strings)
        edges = split(sizes, p, own, fresh=n_nodes == 1)  # (N, 257)
        row, child_byte = np.nonzero(np.diff(edges))      # a child for each share that is not empty
        child_first = first[row] + edges[row, child_byte]
        child_sizes = edges[row, child_byte + 1] - edges[row, child_byte]
        parent.append(nodes[row])
        byte.append(child_byte)
        codeword.append(child_first)

        children = n_nodes + np.arange(len(row))
        child_strings = np.column_stack((strings[row], child_byte.astype(np.uint8)))
        grows = child_sizes > 1
        nodes, strings = children[grows], child_strings[grows]
        first, sizes = child_first[grows], child_sizes[grows]
        n_nodes += len(row)
        progress.update(len(row))
    progress.close()
    columns = [np.concatenate(column).astype(np.int32) for column in (parent, byte, codeword)]
    return Trie(*columns)


# -----------------------------------------------------------------------------
# the neural proxy itself

CUT_RATE = 0.1          # share of the bytes that start a segment
KEEP_BYTES = 2_000_000  # this much text decides which codewords become symbols


class Neural(Proxy):
    """Three kinds of numbers: *nodes* of the trie, the *codewords* that the coder gives to them,
    and *symbols*, the codewords that the corpus uses, numbered anew."""
    kind = "neural"
    report_variants = (
        {"bits": 9},
        {"bits": 12},
        {"bits": 16},
        {"bits": 9, "segment": False},
        {"bits": 12, "segment": False},
        {"bits": 16, "segment": False},
        {"bits": 12, "fuzzy": True},
        {"bits": 16, "fuzzy": True},
    )

    def __init__(self, bits=12, fuzzy=False, segment=True):
        if not 9 <= bits <= 16:
            raise UserError(f"--bits={bits}: expected 9 to 16, so that a window has room for each "
                            "of the 256 bytes")
        self.bits = bits
        self.fuzzy = fuzzy
        self.segment = segment
        self.window = 2 ** bits        # codewords
        self.own = 0 if fuzzy else 1   # of these a string keeps for itself
        self.lm = None
        self.threshold = 0.0           # nats: a byte with more entropy before it starts a segment

    @classmethod
    def from_options(cls, options):
        return cls(options.bits, options.fuzzy, options.segment)

    @classmethod
    def from_state(cls, state):
        proxy = cls(state["bits"], state["fuzzy"], state["segment"])
        proxy.lm = GPT(LM_CONFIG).eval()
        proxy.lm.load_state_dict(state["lm"])
        proxy.threshold = state["threshold"]
        trie = Trie(*[column.numpy() for column in state["nodes"]])
        return proxy.build(trie, state["kept"].numpy())

    def state(self):
        columns = (self.trie.parent, self.trie.byte, self.trie.codeword)
        return {"proxy": self.kind, "bits": self.bits, "fuzzy": self.fuzzy, "segment": self.segment,
                "threshold": self.threshold, "lm": self.lm.state_dict(),
                "nodes": [torch.from_numpy(column) for column in columns],
                "kept": torch.from_numpy(self.kept)}

    @property
    def name(self):
        fuzzy = "-fuzzy" if self.fuzzy else ""
        whole = "" if self.segment else "-whole"
        return f"neural-{self.bits}{fuzzy}{whole}"

    def fit(self, texts):
        if self.lm is None:
            self.lm = train_lm(texts)
        if self.segment:
            entropy = np.concatenate(self.entropies(texts[:2000]))
            self.threshold = float(np.quantile(entropy, 1 - CUT_RATE))
        trie = list_codebook(self.lm, self.window, self.own)

        # of the codewords keep what some of the texts use, and those of single bytes: each symbol
        # that is not used would be a row of the model's output layer that it learns never to choose
        used = set(trie.codeword[trie.parent == 0].tolist())
        for text in texts[::max(1, sum(map(len, texts)) // KEEP_BYTES)]:
            for segment in self.segments(text):
                used.update(trie.codeword[trie.walk(segment)].tolist())
        used.discard(0 if not self.fuzzy else None)  # the exact code's empty string has no use
        return self.build(trie, np.array(sorted(used)))

    def build(self, trie, kept):
        """Set up from the trie and the codewords that are symbols. Returns self.

        A string whose codeword is no symbol is respelled: first its longest beginning that has a
        symbol, then the rest, as a text of its own. The rest is shorter than the string, and
        shorter strings come first in the trie, so what the rest is spelled with has been worked out
        already.
        """
        self.trie = trie
        self.kept = kept
        self.n_symbols = len(kept)
        symbol_of = {codeword: symbol for symbol, codeword in enumerate(kept.tolist())}
        codeword = trie.codeword.tolist()
        parent = trie.parent.tolist()
        strings = trie.strings()
        self.strings = [b""] * len(kept)  # of each symbol; in the fuzzy code the longest of its
        self.symbols = [[]]               # of each node: what its string is written as
        for node in range(1, len(strings)):
            beginning = node
            while codeword[beginning] not in symbol_of:
                beginning = parent[beginning]
            symbol = symbol_of[codeword[beginning]]
            if beginning == node:
                self.strings[symbol] = strings[node]
                self.symbols.append([symbol])
            else:
                rest = strings[node][len(strings[beginning]):]
                self.symbols.append([symbol] + self.encode_segment(rest))
        if not self.fuzzy:
            self.symbol_lengths = np.array([len(string) for string in self.strings])
        return self

    def encode_segment(self, segment):
        """The symbols of a segment, a list. It is coded on its own, whatever comes before it."""
        symbols = []
        for node in self.trie.walk(segment):
            symbols += self.symbols[node]
        return symbols

    def encode_batch(self, texts):
        codes = []
        for text, cuts in zip(texts, self.cuts(texts)):
            symbols = []
            for start, stop in zip(cuts, cuts[1:]):
                symbols += self.encode_segment(text[start:stop])
            codes.append(np.array(symbols, dtype=self.dtype))
        return codes

    def decode(self, symbols):
        return b"".join([self.strings[symbol] for symbol in np.asarray(symbols).tolist()])

    def segments(self, text):
        """The pieces of a text that are coded on their own, a list of bytes."""
        (cuts,) = self.cuts([text])
        return [text[start:stop] for start, stop in zip(cuts, cuts[1:])]

    def cuts(self, texts):
        """Where the segments of each text start, and its end.

        A segment starts where the LM is uncertain of the next byte (the paper's entropy
        segmentation). The coder forgets there what came before, so equal segments are coded
        equally: a change of the text does not spread.
        """
        if not self.segment:
            return [[0, len(text)] for text in texts]
        cuts = []
        for text, entropy in zip(texts, self.entropies(texts)):
            starts = np.flatnonzero(entropy[1:] > self.threshold) + 1
            cuts.append([0, *starts.tolist(), len(text)])
        return cuts

    @torch.inference_mode()
    def entropies(self, texts):
        """The LM's entropy before each byte, in nats: a float32 array for each text.

        The LM restarts with each line. If it restarted every so many bytes, one deletion would move
        all cuts after it: of the standard library's symbols, at 12 bits, 14 % would change with 1 %
        of the bytes deleted. As it is, 5 % do.
        """
        pieces = []
        for text in texts:
            for line in text.splitlines(keepends=True):
                pieces += [line[i:i + LM_BYTES] for i in range(0, len(line), LM_BYTES)]
        by_length = sorted(range(len(pieces)), key=lambda i: len(pieces[i]))  # for little padding
        entropy = [np.zeros(0, np.float32)] * len(pieces)
        for start in range(0, len(pieces), 16):
            batch = by_length[start:start + 16]
            longest = len(pieces[batch[-1]])
            rows = b"".join(pieces[i].ljust(longest, b"\0") for i in batch)
            text = torch.frombuffer(bytearray(rows), dtype=torch.uint8).view(-1, longest).long()
            idx, suffix = lm_inputs(text)
            log_p = torch.log_softmax(self.lm(idx, suffix=suffix), dim=-1)
            for i, h in zip(batch, -(log_p.exp() * log_p).sum(dim=-1).numpy()):
                entropy[i] = h[:len(pieces[i])]
        joined = np.concatenate([np.zeros(0, np.float32), *entropy])
        stops = np.cumsum([len(text) for text in texts])
        return np.split(joined, stops[:-1])


# -----------------------------------------------------------------------------
# all of them: a proxy of your own is a class, and its name here

PROXIES = {proxy.kind: proxy for proxy in (Tokenizer, Neural, Gzip)}


@dataclass
class ProxyOptions:
    data: str = flag("tinycode", f"corpus: {', '.join(BUILT_IN)}, a folder, a .txt file, or "
                     ".jsonl[.gz] with text or content; or several, a:0.7,b:0.3")
    proxy: str = flag("neural", f"compressor: none (raw bytes only), {', '.join(PROXIES)}")
    tokenizer: str = flag("1024", "tokenizer proxy: number of BPE symbols to fit, or the name of a "
                          "tiktoken encoding (o200k_base)")
    bits: int = flag(12, "neural proxy: bits in a window, 9 to 16; at most 2**bits symbols")
    fuzzy: bool = flag(False, "neural proxy: the paper's many-to-one code, not the exact one")
    segment: bool = flag(True, "neural proxy: text cut first where the next byte is uncertain")


def make_proxy(options):
    """The unfitted proxy that the ProxyOptions ask for; None for raw bytes only. Raises
    UserError."""
    expect_one_of("proxy", options.proxy, ["none", *PROXIES])
    if options.proxy == "none":
        return None
    return PROXIES[options.proxy].from_options(options)


def load_proxy(path):
    """The proxy that was saved at `path`. Raises UserError if that is no proxy file."""
    try:
        state = torch.load(path, weights_only=True)
        return PROXIES[state["proxy"]].from_state(state)
    except UserError:
        raise
    except Exception as error:  # whatever a broken file makes torch throw
        raise UserError(f"{path} is not a proxy that this version wrote ({type(error).__name__}: "
                        f"{error}); delete it and run again") from None


def fitted_proxy(options, corpus):
    """(proxy, its file): fitted on the corpus, or read from the cache; (None, None) for raw bytes
    only."""
    proxy = make_proxy(options)
    if proxy is None:
        return None, None
    folder = store.CACHE / corpus.id
    path = folder / f"{proxy.name}.pt"
    with store.locked(folder):  # one process fits, others wait for it and read
        if path.exists():
            print(f"proxy: {proxy.name}, cached in {os.path.relpath(path)}")
            return load_proxy(path), path
        print(f"proxy: fitting {proxy.name} on {options.data}")
        texts = corpus.fitting_texts()
        if isinstance(proxy, Neural):
            proxy.lm = cached_lm(folder / "byte-lm.pt", texts)  # one for all --bits
        proxy.fit(texts).save(path)
        return proxy, path


def cached_lm(path, texts):
    """The byte LM of a corpus, trained on `texts` or read from `path`."""
    if path.exists():
        lm = GPT(LM_CONFIG).eval()
        lm.load_state_dict(torch.load(path, weights_only=True))
        return lm
    lm = train_lm(texts)
    store.write_torch(path, lm.state_dict())
    return lm


# -----------------------------------------------------------------------------
# python proxies.py


@dataclass
class ShowOptions(ProxyOptions):
    text: str = flag(None, "text to cut into symbols", positional=True, nargs="?")
    report: bool = flag(False, "proxy table for --data, in place of a text")


def report(options, corpus):
    """Print the table of all proxies, and of their variants, on held-out samples."""
    samples = []
    for document in corpus.documents():
        if document.held_out:
            samples += cut_at_lines(document.text, 2048)
    samples = samples[::max(1, sum(map(len, samples)) // 500_000)]
    fitted = []
    for kind, proxy in PROXIES.items():
        for variant in proxy.report_variants:
            fitted.append(fitted_proxy(replace(options, proxy=kind, **variant), corpus)[0])
    print_proxy_table(options.data, fitted, samples)


def main(options):
    if options.text is None and not options.report:
        raise UserError("expected a text to cut into symbols, or --report")
    corpus = Corpus(options.data)
    if options.report:
        report(options, corpus)
        return
    for kind in PROXIES:
        proxy, _ = fitted_proxy(replace(options, proxy=kind), corpus)
        show_symbols(proxy, options.text.encode("utf-8", "surrogateescape"))


if __name__ == "__main__":
    command_line(main, ShowOptions, description="Shows what the proxies do to a text or a corpus.")
