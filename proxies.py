"""
The proxies: three compressors. The model trains on their symbols, which hold more text each than
a byte, beside raw bytes. What it learns from the symbols carries over to the bytes; so afterwards
it runs on bytes alone, and the compressor is thrown away (Zheng et al. 2026, arXiv 2602.04289, "the
paper").

Each turns bytes into an array of symbols, 0 .. n_symbols - 1, and back:

- Tokenizer: byte-pair encoding, trained by lib/bpe.py. tiktoken encodes.
- Neural:    a small byte LM drives an arithmetic coder. This is the one to read.
- Gzip:      the bytes of the gzip stream. Its codes refer back to earlier text, and are packed as
             bits across byte borders. So a change of one byte changes nearly everything after it:
             the paper's negative example, as nothing stable is left to learn.

(A fourth, Shuffled, is a control for experiments.)

The neural coder works in *windows* of `bits` bits (equal-information windows: Lester et al. 2024,
arXiv 2404.03626). A window is an interval of 2**bits codewords, and each byte of the text narrows
it to that byte's share, which is in proportion to the byte LM's probability. When the next byte's
share is empty the window is full (or when it holds LONGEST bytes): the first codeword of the
interval reached so far becomes a symbol, and a fresh window starts, for which the LM forgets what
came before. Where the LM predicts the text well, the interval shrinks slowly, and one symbol holds
many bytes.

Before it is coded, a text is cut into *segments* where the next byte is hard to predict, and each
segment starts a fresh window. So an edit changes the symbols near it and no others. By that
stability the paper explains what a model carries over. (In small models something else decides:
"Why gzip fails" in runs/README.md.)

In the paper's *fuzzy* code the bytes share all of an interval, so the first of them inherits its
first codeword: the decoder cannot know where the window stopped. In our *exact* code each string
keeps the first codeword of its interval for itself, "stop here", and the bytes share the rest. Then
each codeword stands for one string at most, and no end marker is needed.

For example, a window of 16 codewords, letters a, b, c that always have the probabilities 1/2, 1/4,
1/4, and the text "aac". In a fresh window each letter is certain of one codeword, and the rest is
shared. In the exact code each next interval starts one later, since the string keeps one:

                    exact                               fuzzy
    fresh window    [0, 16)                             [0, 16)
    one letter      a [1, 8)   b [8, 12)  c [12, 16)    a [0, 8)   b [8, 12)  c [12, 16)
    after "a"       aa [2, 5)  ab [5, 7)  ac [7, 8)     aa [0, 4)  ab [4, 6)  ac [6, 8)
    after "aa"      aaa [3, 4)   aab [4, 5)             aaa [0, 2)   aab [2, 3)   aac [3, 4)
    so "aac" is     2 for "aa", for c has no share,     3
                    then 12 for "c" in a fresh window

(In the fuzzy code 0 stands for "a", "aa", "aaa" and, a step further, "aaaa".)

Since the LM starts anew with each window, all strings that a window can hold can be listed once.
The coder becomes a codebook: encoding walks down a trie, decoding looks up, and neither runs the
LM. The codewords that the corpus uses become symbols; a string whose codeword is not among them is
written as several shorter ones.

    python proxies.py 'some text'              the text in each proxy's symbols: pieces in colour,
                                               or numbers where a symbol is no piece of the text
    python proxies.py --report --data=stdlib   ratio, speed and stability of each, on a corpus
"""
import contextlib
import functools
import gzip
import hashlib
import inspect
import itertools
import os
import pickle
import zlib
from dataclasses import dataclass, fields, replace

import lib  # first: it says what is missing or too old
import numpy as np
import tiktoken
from tqdm import tqdm

from lib import store
from lib.bpe import PATTERN, train_bpe
from lib.check_proxy import check_proxy
from lib.corpus import BUILT_IN, ROOT
from lib.files import printable
from lib.options import UserError, command_line, did_you_mean, expect_one_of, flag
from lib.tables import held_out_samples, print_proxy_table, show_symbols
from lib.results import code_hash, digest
from lib.trie import Trie, take_ragged


# how a proxy encodes this is a part of its id
PROBE = "def add_up(values):\n    return sum(values)\n" + "".join(map(chr, range(256)))


class Proxy:
    """A compressor. `kind` is its value for --proxy; `name` is what a fitted one is called in the
    cache.

    Fitted or loaded, it has `n_symbols` and, if each symbol stands for known bytes,
    `symbol_lengths`: how many, an int64 array (n_symbols,). A text has at most one symbol a byte,
    and `overhead` more.
    """
    kind = ""
    n_symbols = 0
    symbol_lengths = None
    overhead = 0
    fuzzy = False            # whether several texts may have the same symbols
    report_variants = ({},)  # sets of options that have a row in --report
    fitted_by = ()           # files besides its own that decide how it is fitted and encodes

    @classmethod
    def from_options(cls, options):
        """An unfitted proxy, from ProxyOptions. Raises UserError for invalid options."""
        return cls()

    @classmethod
    def from_state(cls, state):
        """A fitted proxy, from what `state` returned."""
        return cls()

    def state(self):
        """All that decides how this proxy encodes: a dict of arrays, and of what torch.save
        takes."""
        return {"proxy": self.kind}

    @property
    def name(self):
        return self.kind

    def fit(self, texts, folder=None):
        """Learn from `texts`, a list of bytes. Returns self.

        folder: a place for what several proxies of a kind can share.
        """
        return self

    def encode(self, text):
        """The symbols (n,) of a text, bytes."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts):
        """The symbols of each text, a list. A proxy defines this or `encode`."""
        return [self.encode(text) for text in texts]

    def encode_prompt(self, text):
        """(symbols, rest) of a text that will go on: the symbols that stay the same whatever
        follows, and the bytes after them, which may share a symbol with what follows.

        For proxies with `symbol_lengths`. Overridden where more than the last symbol may change.
        """
        symbols = self.encode(text)[:-1]
        return symbols, text[len(self.decode(symbols)):]

    def decode(self, symbols):
        """The text, bytes, of some symbols. A proxy defines this; of the paper's fuzzy code it is
        not always the text that was encoded."""
        raise NotImplementedError

    def symbol_bytes(self):
        """The bytes that each symbol stands for, a list; None for each if that is not known."""
        if self.symbol_lengths is None:
            return [None] * self.n_symbols
        return [self.decode([symbol]) for symbol in range(self.n_symbols)]

    def save(self, path):
        store.write_state(path, self.state())

    @property
    def dtype(self):
        """The smallest dtype that holds every symbol; views are stored in it."""
        if self.n_symbols <= 2 ** 8:
            return np.dtype(np.uint8)
        return np.dtype(np.uint16 if self.n_symbols <= 2 ** 16 else np.uint32)

    @property
    def id(self):
        """A hash of its state and of how it encodes: other symbols have another id."""
        return store.state_hash(self.state() | {"probe": np.array(self.encode(PROBE.encode()))})

    @property
    def code_hash(self):
        """A hash of its source: after an edit it is fitted anew, and cached views are checked."""
        its_own = inspect.getsourcefile(type(self))
        return code_hash(its_own, *[ROOT / name for name in ("proxies.py", *self.fitted_by)])


# -----------------------------------------------------------------------------
# gzip


class Gzip(Proxy):
    """gzip; or with `zdict` what it is made of, deflate, without gzip's header and checksum. That
    has 32 KB of the corpus to refer back to, so it compresses short samples, too."""
    kind = "gzip"
    n_symbols = 256
    overhead = 32  # header, trailer, and the frame around a text of a few KB that does not compress
    report_variants = ({}, {"zdict": True})

    def __init__(self, zdict=False, dictionary=b""):
        self.zdict = zdict
        self.dictionary = dictionary

    @classmethod
    def from_options(cls, options):
        return cls(options.zdict)

    @classmethod
    def from_state(cls, state):
        return cls("dictionary" in state, state.get("dictionary", b""))

    def state(self):
        dictionary = {"dictionary": self.dictionary} if self.zdict else {}
        return {"proxy": self.kind} | dictionary

    @property
    def name(self):
        return "gzip-zdict" if self.zdict else "gzip"

    def fit(self, texts, folder=None):
        if self.zdict:
            text = b"".join(texts)
            starts = np.linspace(0, max(0, len(text) - 1024), 32).astype(int)  # spread evenly
            self.dictionary = b"".join(text[start:start + 1024] for start in starts)
        return self

    def encode(self, text):
        return np.frombuffer(self.bare_encode(text), dtype=np.uint8)

    def bare_encode(self, text):
        """The library's own work, whose speed --report shows."""
        if not self.zdict:
            return gzip.compress(text, mtime=0)
        deflate = zlib.compressobj(level=9, wbits=-15, zdict=self.dictionary)  # < 0: no header
        return deflate.compress(text) + deflate.flush()

    def decode(self, symbols):
        compressed = np.asarray(symbols, dtype=np.uint8).tobytes()
        if not self.zdict:
            return gzip.decompress(compressed)
        inflate = zlib.decompressobj(wbits=-15, zdict=self.dictionary)
        text = inflate.decompress(compressed)
        if not inflate.eof:
            raise ValueError("the end of the compressed text is missing")
        return text


# -----------------------------------------------------------------------------
# the tokenizer


class Tokenizer(Proxy):
    """Byte-pair encoding: fitted here, or one of tiktoken's."""
    kind = "tokenizer"
    fitted_by = ("lib/bpe.py",)
    report_variants = ({"tokenizer": "1024"}, {"tokenizer": "4096"}, {"tokenizer": "16384"})

    def __init__(self, which, blind=False):
        """which: how many symbols to fit, as a string of digits, or the name of a tiktoken
        encoding. blind: the model is not told which bytes a symbol stands for."""
        self.which = which
        self.blind = blind
        known = tiktoken.list_encoding_names()
        if self.is_fitted_here:
            if not 256 < int(which) <= 2 ** 20:
                raise UserError(f"--tokenizer={which}: expected 257 to {2 ** 20} symbols, or the "
                                "name of a tiktoken encoding")
        elif which not in known:
            raise UserError(f"--tokenizer={which}: expected a number of symbols or one of "
                            f"{', '.join(known)}{did_you_mean(which, known)}")

    @property
    def is_fitted_here(self):
        """Whether `which` is a number of symbols, not the name of an encoding."""
        return self.which.isascii() and self.which.isdigit()

    @classmethod
    def from_options(cls, options):
        return cls(options.tokenizer, options.blind)

    @classmethod
    def from_state(cls, state):
        proxy = cls(state["which"], state.get("blind", False))
        if state["ranks"] is None:  # tiktoken's own encoding
            return proxy.fit([])
        return proxy.build(state["ranks"])

    def state(self):
        blind = {"blind": True} if self.blind else {}
        return {"proxy": self.kind, "which": self.which, "ranks": self.ranks} | blind

    @property
    def name(self):
        return f"{self.kind}-{self.which}{'-blind' if self.blind else ''}"

    def fit(self, texts, folder=None):
        if self.is_fitted_here:
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
        self.tokens = [b""] * self.n_symbols  # tiktoken's encodings have ids without a token
        for token in self.encoding.token_byte_values():
            self.tokens[self.encoding.encode_single_token(token)] = token
        if not self.blind:
            self.symbol_lengths = np.array([len(token) for token in self.tokens])
        return self

    def symbol_bytes(self):
        return super().symbol_bytes() if self.blind else self.tokens

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

    def encode_prompt(self, text):
        """tiktoken knows which tokens may still change. The text must be UTF-8."""
        stable, _ = self.encoding.encode_with_unstable(text.decode(), disallowed_special=())
        return np.array(stable, dtype=self.dtype), text[len(self.decode(stable)):]

    def bare_encode(self, text):
        """The library's own work, whose speed --report shows; it takes no other text than UTF-8."""
        return self.encoding.encode_ordinary(text.decode("utf-8", "ignore"))

    def decode(self, symbols):
        return b"".join([self.tokens[symbol] for symbol in np.asarray(symbols).tolist()])


class Shuffled(Tokenizer):
    """A control, which answers what stability is worth: the tokenizer's symbols, permuted anew for
    each text. The code is a symbol longer than the tokenizer's, and as unstable as gzip's.

    The first symbol is the number of the permutation, a hash of the text.
    """
    kind = "shuffled"
    overhead = 1
    report_variants = ({"tokenizer": "1024"},)

    def __init__(self, which, blind=True):
        # always blind, whatever --blind says: no symbol stands for the same bytes in two texts
        super().__init__(which, blind=True)

    @property
    def name(self):
        return f"shuffled-{self.which}"

    def encode(self, text):
        digest = hashlib.sha256(text).digest()
        number = int.from_bytes(digest[:8], "big") % self.n_symbols
        symbols = permutation(number, self.n_symbols)[super().encode(text)]
        return np.append(number, symbols).astype(self.dtype)

    def decode(self, symbols):
        number, symbols = symbols[0], symbols[1:]
        back = np.argsort(permutation(int(number), self.n_symbols))
        return super().decode(back[symbols])


@functools.lru_cache(maxsize=1024)
def permutation(number, n):
    """The numbers 0 .. n - 1 in an order that depends on `number`."""
    return np.random.default_rng(number).permutation(n)


# -----------------------------------------------------------------------------
# the neural proxy: its codebook

LONGEST = 48  # bytes that a window may hold; strings that are in use are rarely so long


def share_edges(sizes, p, own, fresh):
    """Divide intervals among the bytes: the edges (N, bytes + 1) of their shares, int64 offsets.

        edge[i] = own + (i if fresh) + round(p[:i].sum() * the codewords that are left)

    sizes: the codewords in each interval (N,). p: the probabilities of the bytes, float64 (N,
    bytes). own: 1 in the exact code, where the interval keeps its first codeword, 0 in the fuzzy
    one. fresh: in a fresh window each byte gets at least one codeword, so that every text has a
    code.

    The example at the top: 16 codewords, fresh, exact. One is the empty string's own, each of the
    three letters has one for certain, and the other 12 are shared: 6, 3, 3. So the edges are 1, 8,
    12, 16. (Rounded down, all edges but the last would be a little too low, and the last byte,
    0xff, would be given a codeword of every interval: a third of them all, for strings that no text
    has.)
    """
    n_bytes = p.shape[1]
    certain = 1 if fresh else 0
    shared = sizes - own - certain * n_bytes  # (N,)
    cumulative = np.zeros((len(p), n_bytes + 1))
    cumulative[:, 1:] = np.cumsum(p, axis=1)
    cumulative /= cumulative[:, -1:]  # to end at 1 exactly: else rounding may lose a codeword
    shares = np.floor(cumulative * shared[:, None] + 0.5).astype(np.int64)  # to the nearest one
    return own + certain * np.arange(n_bytes + 1) + shares


def list_codebook(predict, n_codewords, own):
    """The Trie of all strings, of at most LONGEST bytes, that a window of so many codewords can
    hold, the shortest first.

    A string whose interval has more than one codeword can grow: the LM says how the bytes share
    them. own: as `share_edges` takes it. predict(strings): the LM's probabilities (N, 256) of the
    byte that follows each of `strings`, uint8 (N, length). They are float64, so that rounding,
    which differs between machines, almost never moves an edge.
    """
    parent, byte, codeword = [np.zeros(1, int)], [np.zeros(1, int)], [np.zeros(1, int)]
    # the strings of the present length that can grow: their nodes (N,), their bytes (N, length),
    # and their intervals, (N,) first codewords and (N,) sizes
    growing = np.zeros(1, int)
    strings = np.zeros((1, 0), np.uint8)
    first, sizes = np.zeros(1, int), np.array([n_codewords])
    n_nodes = 1
    progress = tqdm(desc="codebook", total=n_codewords if own else None, leave=False, disable=None)
    while len(growing) > 0 and strings.shape[1] < LONGEST:
        p = predict(strings)
        edges = share_edges(sizes, p, own, fresh=strings.shape[1] == 0)  # (N, 257)
        of_parent, child_byte = np.nonzero(np.diff(edges))  # a child for each share with codewords
        child_first = first[of_parent] + edges[of_parent, child_byte]
        child_sizes = edges[of_parent, child_byte + 1] - edges[of_parent, child_byte]
        parent.append(growing[of_parent])
        byte.append(child_byte)
        codeword.append(child_first)

        children = n_nodes + np.arange(len(of_parent))
        child_strings = np.column_stack((strings[of_parent], child_byte.astype(np.uint8)))
        can_grow = child_sizes > 1  # a single codeword can't be shared
        growing, strings = children[can_grow], child_strings[can_grow]
        first, sizes = child_first[can_grow], child_sizes[can_grow]
        n_nodes += len(of_parent)
        progress.update(len(of_parent))
    progress.close()
    columns = [np.concatenate(column).astype(np.int32) for column in (parent, byte, codeword)]
    return Trie(*columns)


# -----------------------------------------------------------------------------
# the neural proxy: where it cuts the text


def join(texts):
    """(data, begins): the texts in one uint8 array, a newline before each; where each begins.

    The newline keeps texts apart: what is said of a text does not depend on the one before it.
    """
    data = np.frombuffer(b"\n" + b"\n".join(texts), np.uint8)
    lengths = np.array([len(text) + 1 for text in texts])
    return data, np.cumsum(lengths) - lengths + 1


def bigrams(data):
    """Each byte of data (n,) and the next one, as one number: uint16 (n - 1,)."""
    data = data.astype(np.uint16)
    return data[:-1] * 256 + data[1:]


def entropies(counts):
    """The entropy of each row of counts (N, 256), in bits: float64 (N,), 0 for a row of zeros."""
    entropy = np.zeros(len(counts))
    for start in range(0, len(counts), 4096):  # a part at a time, which is 8 MB
        some = slice(start, start + 4096)
        total = counts[some].sum(axis=1, keepdims=True)
        p = counts[some] / np.maximum(1, total)
        entropy[some] = -(p * np.log2(np.where(p > 0, p, 1))).sum(axis=1)
    return entropy


def uncertain_bigrams(texts, cut_rate):
    """The bigrams after which to cut, bool (2**16,): as `bigrams` numbers them.

    They are those with the highest entropy of the byte that follows them in `texts`: as many as cut
    at about the share `cut_rate` of the positions. After the end of a word many bytes may follow,
    in the middle of one few. (The paper cuts where its byte LM is uncertain. This needs no LM, and
    cuts a text alike on every machine; runs/README.md compares them.)
    """
    data, begins = join(texts)
    bigram, following = bigrams(data)[:-1], data[2:]
    separator = np.zeros(len(data), dtype=bool)
    separator[begins - 1] = True
    # without trigrams that cross into the next text. A separator may come first: so texts begin
    in_one_text = ~(separator[1:-1] | separator[2:])
    trigram = bigram[in_one_text].astype(np.int64) * 256 + following[in_one_text]
    counts = np.bincount(trigram, minlength=2 ** 24).reshape(2 ** 16, 256)
    total = counts.sum(axis=1)
    # rounded, since logarithms differ between machines in the last bit
    entropy = entropies(counts).round(9)
    most_uncertain_first = np.argsort(-entropy, kind="stable")
    # as many of the most uncertain as cover that share of all positions; the last one is taken if
    # at least half of its positions are within it
    in_line = total[most_uncertain_first]
    middle = np.cumsum(in_line) - in_line / 2
    chosen = most_uncertain_first[middle <= cut_rate * total.sum()]
    cut_after = np.zeros(2 ** 16, dtype=bool)
    cut_after[chosen[entropy[chosen] > 0]] = True
    return cut_after


# -----------------------------------------------------------------------------
# the neural proxy itself

CUT_RATE = 0.1           # share of the positions that start a segment
KEEP_BYTES = 2_000_000   # this much text, up to twice, decides which codewords become symbols
BYTES_AT_ONCE = 2 ** 19  # text that is encoded together


class Neural(Proxy):
    """Three kinds of numbers: *nodes* of the trie, the *codewords* that the coder gives to them,
    and *symbols*, the codewords that the corpus uses, numbered anew."""
    kind = "neural"
    fitted_by = ("model.py", "lib/byte_lm.py", "lib/attention.py", "lib/trie.py")
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
        self.n_codewords = 2 ** bits   # in a window
        self.own = 0 if fuzzy else 1   # codewords that a string keeps for itself
        self.lm = None  # until it is fitted; a test may put another one here
        self.cut_after = np.zeros(2 ** 16, dtype=bool)  # the bigrams that end a segment

    @classmethod
    def from_options(cls, options):
        return cls(options.bits, options.fuzzy, options.segment)

    @classmethod
    def from_state(cls, state):
        proxy = cls(state["bits"], state["fuzzy"], state["segment"])
        proxy.cut_after = state["cut_after"]
        trie = Trie(state["parent"], state["byte"], state["codeword"])
        return proxy.build(trie, state["kept"])

    def state(self):
        trie = self.trie
        return {"proxy": self.kind, "bits": self.bits, "fuzzy": self.fuzzy, "segment": self.segment,
                "cut_after": self.cut_after, "parent": trie.parent, "byte": trie.byte,
                "codeword": trie.codeword, "kept": self.kept}

    @property
    def name(self):
        fuzzy = "-fuzzy" if self.fuzzy else ""
        whole = "" if self.segment else "-whole"
        return f"neural-{self.bits}{fuzzy}{whole}"

    def fit(self, texts, folder=None):
        from lib import byte_lm  # and with it PyTorch, which an encoding process can do without
        if self.lm is None:
            self.lm = byte_lm.cached_lm(folder, texts)
        if self.segment:
            self.cut_after = uncertain_bigrams(texts, CUT_RATE)
        trie = list_codebook(byte_lm.predictor(self.lm), self.n_codewords, self.own)

        # keep the codewords that a part of the texts uses, and those of single bytes: a symbol that
        # is not used would be a row of the model's output layer that it learns never to choose
        every_nth = max(1, sum(map(len, texts)) // KEEP_BYTES)
        data, begins = join(texts[::every_nth])
        node_at = trie.walk_all(data, self.segment_starts(data, begins))
        used = trie.codeword[node_at[node_at > 0]]
        of_single_bytes = trie.codeword[1:][trie.parent[1:] == 0]
        return self.build(trie, np.union1d(used, of_single_bytes))

    def build(self, trie, kept):
        """Set up from the trie and the codewords that are symbols. Returns self.

        A string whose codeword is no symbol is written as several: first its longest beginning that
        has a symbol, then the rest, as a text of its own. The rest is shorter than the string, and
        shorter strings come first in the trie, so the symbols of the rest are known already.
        """
        self.trie = trie
        self.kept = kept
        self.n_symbols = len(kept)
        symbol_of = {codeword: symbol for symbol, codeword in enumerate(kept.tolist())}
        codeword = trie.codeword.tolist()
        parent = trie.parent.tolist()
        strings = trie.strings()
        for node in np.flatnonzero(trie.parent == 0)[1:].tolist():  # [0] is the empty string
            if codeword[node] not in symbol_of:
                raise ValueError(f"no symbol for the single byte {strings[node]!r}: expected one "
                                 "for each, so that every text can be spelled")
        self.symbol_strings = [b""] * len(kept)  # if several strings share a symbol, the longest
        self.node_symbols = [[]]                 # what the string of each node is written as
        for node in range(1, len(strings)):
            beginning = node
            while codeword[beginning] not in symbol_of:
                beginning = parent[beginning]
            symbol = symbol_of[codeword[beginning]]
            symbols = [symbol]
            if beginning == node:
                self.symbol_strings[symbol] = strings[node]  # over a shorter one, in the fuzzy code
            else:
                rest = strings[node][len(strings[beginning]):]
                symbols += self.encode_segment(rest)  # which needs shorter strings' nodes alone
            self.node_symbols.append(symbols)
        # the same in one array, for encode_together
        self.symbol_count = np.array([len(symbols) for symbols in self.node_symbols])
        self.first_symbol = np.cumsum(self.symbol_count) - self.symbol_count
        in_one_list = list(itertools.chain.from_iterable(self.node_symbols))
        self.all_symbols = np.array(in_one_list, dtype=self.dtype)
        if not self.fuzzy:
            self.symbol_lengths = np.array([len(string) for string in self.symbol_strings])
        return self

    def encode_segment(self, segment):
        """The symbols of a segment, a list. It is coded on its own, whatever comes before it.

        `encode_together` gives the same, and is the fast way.
        """
        symbols = []
        for _, node in self.trie.walk(segment):
            symbols += self.node_symbols[node]
        return symbols

    def encode_batch(self, texts):
        encoded = []
        group, group_bytes = [], 0
        for text in texts:
            group.append(text)
            group_bytes += len(text)
            if group_bytes >= BYTES_AT_ONCE:
                encoded += self.encode_together(group)
                group, group_bytes = [], 0
        return encoded + self.encode_together(group)

    def encode_together(self, texts):
        """`encode_segment` of every segment of the texts, for all of them at once."""
        if not texts:
            return []
        data, begins = join(texts)
        # (bytes,): at the last byte of a window its node, elsewhere 0
        node_at = self.trie.walk_all(data, self.segment_starts(data, begins))
        node_at[begins - 1] = 0  # the newlines between texts are no part of them
        last_bytes = np.flatnonzero(node_at)  # of windows
        nodes = node_at[last_bytes]
        count = self.symbol_count[nodes]
        symbols = take_ragged(self.all_symbols, self.first_symbol[nodes], count)
        windows_before = np.searchsorted(last_bytes, begins[1:])  # the second text, the third ..
        symbols_before = np.append(0, np.cumsum(count))[windows_before]
        return np.split(symbols, symbols_before)

    def encode_prompt(self, text):
        """All but the last window, which what follows may lengthen; or all windows, if the text ends
        where a segment does."""
        # with a byte more, as a cut after the text shows only before one
        *_, segment = self.segments(text + b"?")
        segment = segment[:-1]
        window_ends = [end for end, _ in self.trie.walk(segment)]
        last_begins = max(window_ends[:-1], default=0)
        rest = segment[last_begins:]
        return self.encode(text[:len(text) - len(rest)]), rest

    def decode(self, symbols):
        return b"".join([self.symbol_strings[symbol] for symbol in np.asarray(symbols).tolist()])

    def segment_starts(self, data, begins):
        """Where the segments of joined texts start, (segments,): after an uncertain bigram.

        The coder forgets there what came before, so equal segments are coded equally, and a change
        of the text does not spread.
        """
        is_start = np.zeros(len(data), dtype=bool)
        # bytes i - 2 and i - 1 decide whether a segment starts at i
        is_start[2:] = self.cut_after[bigrams(data)[:-1]]
        is_start[begins[begins < len(data)]] = True  # an empty last text begins at the end
        is_start[begins - 1] = True  # the newline before each text is a segment of its own
        return np.flatnonzero(is_start)

    def segments(self, text):
        """The pieces of a text that are coded on their own, a list of bytes."""
        data, begins = join([text])
        starts = self.segment_starts(data, begins)
        _, *pieces = np.split(data, starts[1:])  # the first is the newline before the text
        return [piece.tobytes() for piece in pieces]


# -----------------------------------------------------------------------------
# all of them: a proxy of your own is a class, and its name here

PROXIES = {proxy.kind: proxy for proxy in (Tokenizer, Neural, Gzip, Shuffled)}


@dataclass
class ProxyOptions:
    data: str = flag("tinycode", f"corpus: {', '.join(BUILT_IN)}, a folder, a file of text, or "
                     "rows with text or content in .jsonl[.gz|.zst] or .parquet; or several, "
                     "a:0.7,b:0.3")
    text_column: str = flag("", "field of the rows that has the text [text or content]")
    rehash: bool = flag(False, "large files hashed again, even if name, size and time are as "
                        "before")
    proxy: str = flag("neural", f"compressor: none (raw bytes only), {', '.join(PROXIES)}")
    tokenizer: str = flag("1024", "tokenizer proxy: number of BPE symbols to fit, or the name of a "
                          "tiktoken encoding (o200k_base)")
    blind: bool = flag(False, "tokenizer proxy: its symbols stand for no known bytes, as gzip's; "
                       "so on the compressed side no alignment and no n-gram features")
    zdict: bool = flag(False, "gzip proxy: 32 KB of the corpus as a preset dictionary, no header")
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


def load_proxy(path, advice="delete it and run again"):
    """The proxy that was saved at `path`. Raises UserError, with an advice, if that is no proxy
    file."""
    try:
        state = store.read_state(path)
        return PROXIES[state["proxy"]].from_state(state)
    except UserError:
        raise
    except Exception as error:  # whatever a broken file makes torch throw
        raise UserError(f"{path} is not a proxy that this version wrote ({type(error).__name__}: "
                        f"{error}); {advice}") from None


def fitted_proxy(options, corpus, meanwhile=contextlib.nullcontext()):
    """(proxy, its file): fitted on the corpus, or read from the cache; (None, None) for raw bytes
    only.

    meanwhile: a context manager that is entered for the fit, to have other work done beside it.
    """
    unfitted = make_proxy(options)
    if unfitted is None:
        return None, None
    name = unfitted.name
    folder = store.CACHE / corpus.id
    settings = pickle.dumps(vars(unfitted))  # one's own proxy may have some that its name lacks
    path = folder / f"{name}-{digest([unfitted.code_hash, settings.hex()])}.pt"
    with store.locked(folder):  # one process fits, others wait for it and read
        store.remove_leftovers(folder)
        if path.exists():
            print(f"proxy: {name}, cached in {os.path.relpath(path)}")
        else:
            print(f"proxy: fitting {name} on {printable(options.data)}")
            with meanwhile:
                texts = corpus.fitting_texts()
                fitted = unfitted.fit(texts, folder)
                check_proxy(fitted, texts)
                fitted.save(path)
            del unfitted, fitted, texts  # and the LM
            store.return_freed_memory()
    return load_proxy(path), path  # without what was only needed to fit it


# -----------------------------------------------------------------------------
# python proxies.py


@dataclass
class ShowOptions(ProxyOptions):
    given = ()  # names of the flags that were given: no field, `parse` of lib/options.py sets it

    proxy: str = flag("", f"compressor to show, one of {', '.join(PROXIES)} [all]")
    text: str = flag(None, "text to cut into symbols", positional=True, nargs="?")
    report: bool = flag(False, "proxy table for --data, in place of a text: each proxy in several "
                        "settings")
    sample_bytes: int = flag(2048, "longest sample in the table; in a training with contexts of "
                             "448 symbols it has 222 bytes (206 with gzip)")


REPORT_TAKES = ("data", "text_column", "rehash", "proxy")  # of ProxyOptions


def refuse_settings(options):
    """--report has settings of its own of each proxy. Raises UserError for others."""
    for field in fields(ProxyOptions):
        if field.name in options.given and field.name not in REPORT_TAKES:
            raise UserError(f"--report --{field.name}: the table has settings of its own; leave it "
                            "out, or change the proxy's report_variants")


def main(options):
    has_text = options.text is not None
    if has_text == options.report:  # both, or neither
        raise UserError("expected either a text to cut into symbols, or --report")
    if options.sample_bytes < 5:
        raise UserError(f"--sample_bytes={options.sample_bytes}: expected 5 or more, as a "
                        "character may have 4")
    if options.proxy:
        expect_one_of("proxy", options.proxy, PROXIES)
    if options.report:
        refuse_settings(options)
    corpus = store.open_corpus(options.data, options.text_column, options.rehash)
    kinds = [options.proxy] if options.proxy else PROXIES
    if options.report:  # has its own settings of each
        settings = [ProxyOptions(options.data, proxy=kind, **variant)
                    for kind in kinds for variant in PROXIES[kind].report_variants]
    else:
        settings = [replace(options, proxy=kind) for kind in kinds]
    fitted = [fitted_proxy(setting, corpus)[0] for setting in settings]
    if options.report:
        print_proxy_table(options.data, fitted, held_out_samples(corpus, options.sample_bytes))
        return
    for proxy in fitted:
        show_symbols(proxy, options.text.encode("utf-8", "surrogateescape"))


if __name__ == "__main__":
    command_line(main, ShowOptions, description="Shows what the proxies do to a text or a corpus.")
