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

The neural coder works in *windows* of `bits` bits (equal-information windows: Lester et al. 2024,
arXiv 2404.03626). A window is an interval of 2**bits codewords, and each byte of the text narrows
it to that byte's share, which is in proportion to the byte LM's probability. A window is full when
the next byte's share is empty, when one codeword is left, or after 48 bytes. Then the first
codeword of the interval reached so far is written and a fresh window starts; the LM forgets what
came before. Where the LM predicts the text well, the interval shrinks slowly, and
one symbol holds many bytes.

In our *exact* code a string keeps the first codeword of its interval for itself, "stop here", and
the bytes share the rest. So each codeword stands for one string at most, and no end marker is
needed. For example, a window of 16 codewords, letters a, b, c that always have the probabilities
1/2, 1/4, 1/4, and the text "aac". In a fresh window each letter is certain of one codeword, and the
rest is shared:

    codewords       0   1   2   3   4   5   6   7   8   9   10  11  12  13  14  15
    fresh window    ""  |a                          |b              |c
    after "a"           a   |aa         |ab     |ac
    after "aa"              aa  |aaa|aab

The interval of "aa" is [2, 5). It keeps 2, and c has no share of 3 and 4. So "aac" is coded as 2,
for "aa", and then 12, for "c" in a fresh window.

In the paper's *fuzzy* code the bytes share all of an interval, and the first of them inherits its
first codeword. Then "a" has [0, 8), "aa" [0, 4) and "aac" [3, 4): one symbol, 3, is enough for
"aac". But 0 stands for "a", "aa", "aaa" and "aaaa", and the decoder can't know which it was.

Since the LM starts anew with each window, all strings that a window can hold can be listed once,
with their codewords. The exact *codebook* of the example:

     0 (no text)   1 a     2 aa    3 aaa   4 aab   5 ab    6 aba   7 ac
     8 b           9 ba   10 baa  11 bc   12 c    13 ca   14 caa  15 cc

To encode, take the longest listed string that the text begins with, write its codeword, and go on
after it. To decode, look the codewords up. Neither runs the LM. The codewords that 2 to 4 MB of the
corpus use, and those of the 256 single bytes, become the symbols. A string whose codeword is not
among them is written as several shorter ones.

Before it is coded, a text is cut into *segments* where the next byte is hard to predict, and each
segment starts a fresh window. This costs compression, since the window before a cut is left partly
empty: with 12 bits a symbol of tinycode holds 3.77 bytes, and would hold 4.41 without cuts. What it
buys is that an edit changes the symbols near it and no others. By that stability the paper explains
what a model carries over. (In small models something else decides: "Why gzip fails" in
runs/README.md.)

    python proxies.py 'some text'              the text in each proxy's symbols: pieces in colour,
                                               or numbers where a symbol is no piece of the text
    python proxies.py --report --data=stdlib   ratio, speed and stability of each, on a corpus

A proxy of your own is a subclass of Proxy in a file of yours: --proxy=FILE.py:CLASS.
"""
import gzip
import itertools
import sys
from dataclasses import dataclass, replace

import lib  # first: it says what is missing or too old
import numpy as np

from lib.bpe import PATTERN, train_bpe
from lib.data import BUILT_IN, ROOT
from lib.options import UserError, command_line, flag
from lib.proxy import PROXIES, Proxy, load_proxy, proxy_class
from lib.tables import print_proxy_table, show_symbols
from lib.views import fitted_proxy, open_samples
# tiktoken is imported where it is used, and torch with lib.byte_lm: a process that only encodes
# saves 140 MB without torch, and sampling raw bytes needs no tokenizer


# -----------------------------------------------------------------------------
# gzip


class Gzip(Proxy):
    kind = "gzip"
    n_symbols = 256
    overhead = 32  # header, trailer, and the frame around a text of a few KB that does not compress

    def encode(self, text):
        return np.frombuffer(gzip.compress(text, mtime=0), dtype=np.uint8)

    def decode(self, symbols):
        return gzip.decompress(np.asarray(symbols, dtype=np.uint8).tobytes())


# -----------------------------------------------------------------------------
# the tokenizer


class Tokenizer(Proxy):
    """Byte-pair encoding. (runs/controls.py has one for an encoding of tiktoken's.)"""
    kind = "tokenizer"
    settings = ("tokenizer",)
    learned = ("ranks",)
    fitted_by = (ROOT / "lib/bpe.py",)

    def __init__(self, tokenizer="1024"):
        """tokenizer: how many symbols to fit, as text (others take a name). Raises UserError."""
        is_number = tokenizer.isascii() and tokenizer.isdigit()
        if not is_number or not 256 < int(tokenizer) <= 2 ** 20:
            raise UserError(f"--tokenizer={tokenizer}: expected 257 to {2 ** 20} symbols; an "
                            "encoding of tiktoken's needs --proxy=runs/controls.py:Tiktoken")
        self.tokenizer = tokenizer

    @property
    def name(self):
        return f"{self.kind}-{self.tokenizer}"

    def fit(self, texts):
        self.ranks = train_bpe(texts, int(self.tokenizer))  # {bytes: rank of the merge}
        return self.build()

    def build(self):
        import tiktoken
        return self.use(tiktoken.Encoding(
            "nanoproxy", pat_str=PATTERN, mergeable_ranks=self.ranks, special_tokens={}))

    def use(self, encoding):
        """Encode with an encoding of tiktoken's. Returns self."""
        self.encoding = encoding
        self.n_symbols = encoding.max_token_value + 1
        self.tokens = [b""] * self.n_symbols  # an encoding may have ids without a token
        for token in encoding.token_byte_values():
            self.tokens[encoding.encode_single_token(token)] = token
        self.symbol_lengths = np.array([len(token) for token in self.tokens])
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

    def encode_prompt(self, text):
        """tiktoken knows which tokens may still change. The text must be UTF-8."""
        stable, _ = self.encoding.encode_with_unstable(text.decode(), disallowed_special=())
        return np.array(stable, dtype=self.dtype), text[len(self.decode(stable)):]

    def decode(self, symbols):
        return b"".join([self.tokens[symbol] for symbol in np.asarray(symbols).tolist()])


# -----------------------------------------------------------------------------
# the neural proxy: its codebook


def share_edges(sizes, p, own, certain):
    """Divide intervals among the bytes: the edges (N, bytes + 1) of their shares, counted from each
    interval's first codeword. Byte number i has the codewords from edge[i] to below edge[i + 1].

        edge[i] = own + certain * i + round(p[:i].sum() * the codewords that are left)

    sizes: the codewords in each interval (N,). p: the probabilities of the bytes, float64 (N,
    bytes). own: how many an interval keeps for the string that it has reached, 1 in the exact code,
    0 in the fuzzy one. certain: how many each byte gets for certain, 1 in a fresh window, so that
    every text has a code, else 0.

    The example at the top: 16 codewords, a fresh window, the exact code. The empty string keeps
    one, the three letters have one each, and the other 12 are shared: 6, 3, 3. So the edges are 1,
    8, 12, 16. (Rounding down would leave each interval's remainder to the last byte, 0xff: a third
    of the codebook would go to strings that no text has.)
    """
    n_letters = p.shape[1]
    to_share = sizes - own - certain * n_letters  # (N,)
    cumulative = np.zeros((len(p), n_letters + 1))
    cumulative[:, 1:] = np.cumsum(p, axis=1)
    cumulative /= cumulative[:, -1:]  # to end at 1 exactly
    shared_edges = np.floor(cumulative * to_share[:, None] + 0.5)  # rounded, halves up
    return own + certain * np.arange(n_letters + 1) + shared_edges.astype(np.int64)


def list_codebook(predict, n_codewords, own, longest):
    """{string: codeword} of every string of 1 to `longest` bytes that a window of n_codewords
    holds, shortest first.

    A string whose interval has more than one codeword can grow: the LM says how the bytes share
    them. own: as `share_edges` takes it. predict(strings): the LM's probabilities (N, 256) of the
    byte that follows each of `strings`, uint8 (N, length). They are float64, so that rounding
    almost never moves an edge: one LM gives nearly always one codebook on every machine. (LMs
    trained on two machines differ slightly, and so do their codebooks.)
    """
    codebook = {}
    # the strings of the present length that can grow, their bytes (N, length) and their intervals:
    # first codewords (N,) and sizes (N,). At first the empty string, which has the whole window
    strings = np.zeros((1, 0), np.uint8)
    first, sizes = np.array([0]), np.array([n_codewords])
    while len(strings) > 0 and strings.shape[1] < longest:
        certain = 1 if strings.shape[1] == 0 else 0
        edges = first[:, None] + share_edges(sizes, predict(strings), own, certain)  # (N, 257)
        # A longer string for each share that is not empty. In the example of the module docstring
        # "a" has [1, 8), with edges 2, 5, 7, 8: so "aa" has [2, 5), "ab" [5, 7) and "ac" [7, 8).
        parent, byte = np.nonzero(np.diff(edges))  # (M,) each: which string grows, and by what
        strings = np.column_stack((strings[parent], byte.astype(np.uint8)))
        first, end = edges[parent, byte], edges[parent, byte + 1]
        for string, codeword in zip(strings, first.tolist()):
            codebook[string.tobytes()] = codeword
        sizes = end - first
        can_grow = sizes > 1  # a single codeword can't be shared
        strings, first, sizes = strings[can_grow], first[can_grow], sizes[can_grow]
    return codebook


class Trie:
    """The codebook as a tree, to walk along a text. Each node is one of its strings, a byte longer
    than its parent's; node 0 is the empty string.

    Nodes are numbered by length: every shorter string comes first. Every single byte has a node, so
    there is always a way to go on.
    """
    def __init__(self, codebook):
        """codebook: what `list_codebook` returned."""
        self.strings = [b"", *codebook]  # of each node
        node_of = {string: node for node, string in enumerate(self.strings)}
        # child[node, byte] is the node that is this byte longer, or 0 where there is none: 0, the
        # root, is nobody's child
        self.child = np.zeros((len(self.strings), 256), np.int32)
        for node, string in enumerate(codebook, start=1):
            parent = node_of[string[:-1]]
            self.child[parent, string[-1]] = node

    def walk(self, text):
        """Go down the trie with each byte of `text`, and from its root again where no child has it.

        Yields the node of each window. The last one may still grow: it is the root, for the empty
        string, where there is no text.
        """
        node = 0
        for byte in text:
            child = self.child[node, byte]
            if child == 0:  # the window is full
                yield node
                child = self.child[0, byte]
            node = child
        yield node


# -----------------------------------------------------------------------------
# the neural proxy: where it cuts the text


def uncertain_bigrams(texts, cut_rate):
    """The bigrams after which to cut, bool (2**16,): number 256 * a + b is for byte a, then b.

    They are those with the highest entropy of the byte that follows them in `texts`: as many as cut
    at about the share `cut_rate` of the positions. After the end of a word many bytes may follow,
    in the middle of one few. (The paper cuts where its byte LM is uncertain. This needs no LM, and
    cuts a text alike on every machine; runs/README.md compares them.)
    """
    trigrams = []
    for text in texts:
        # as in Neural.segments, a text is taken to follow the end of a line
        data = np.frombuffer(b"\n" + text, np.uint8).astype(np.uint32)
        trigrams.append(data[:-2] * 2 ** 16 + data[1:-1] * 2 ** 8 + data[2:])
    trigrams, counts = np.unique(np.concatenate(trigrams), return_counts=True)
    bigram = trigrams >> 8
    total = np.bincount(bigram, weights=counts, minlength=2 ** 16)
    p = counts / total[bigram]  # of a trigram's last byte after its first two
    entropy = np.bincount(bigram, weights=-p * np.log2(p), minlength=2 ** 16)
    # rounded, since logarithms differ between machines in the last bit
    entropy = entropy.round(9)
    most_uncertain_first = np.argsort(-entropy, kind="stable")
    # from the most uncertain on; the bigram at the border is taken if at least half of its
    # positions are within the share
    positions = total[most_uncertain_first]
    middle = np.cumsum(positions) - positions / 2
    chosen = most_uncertain_first[middle <= cut_rate * total.sum()]
    cut_after = np.zeros(2 ** 16, dtype=bool)
    cut_after[chosen[entropy[chosen] > 0]] = True
    return cut_after


# -----------------------------------------------------------------------------
# the neural proxy itself


class Neural(Proxy):
    """The neural coder. It has three kinds of numbers: *nodes* of the trie, the *codewords* that
    stand for them, and *symbols*: the codewords that are kept, numbered anew."""
    kind = "neural"
    settings = ("bits", "fuzzy", "segment")
    learned = ("cut_after", "codebook", "kept_codewords")
    # not model.py, so that editing it does not discard the cached proxies
    fitted_by = (ROOT / "lib/byte_lm.py", share_edges, list_codebook, Trie, uncertain_bigrams)
    cut_rate = 0.1          # share of the positions that start a segment
    keep_bytes = 2_000_000  # 2 to 4 MB of text decide which codewords become symbols

    def __init__(self, bits=12, fuzzy=False, segment=True):
        """Raises UserError for bits that are too few or too many."""
        if not 9 <= bits <= 16:
            raise UserError(f"--bits={bits}: expected 9 to 16, so that a window has room for each "
                            "of the 256 bytes")
        self.bits = bits
        self.fuzzy = fuzzy
        self.segment = segment
        self.lm = None  # one that was trained on the same texts may be put here before the fit
        self.cut_after = np.zeros(2 ** 16, dtype=bool)  # the bigrams that end a segment

    @property
    def name(self):
        fuzzy = "-fuzzy" if self.fuzzy else ""
        whole = "" if self.segment else "-whole"
        return f"{self.kind}-{self.bits}{fuzzy}{whole}"

    def fit(self, texts):
        from lib import byte_lm
        from model import GPT, GPTConfig
        if self.lm is None:
            self.lm = byte_lm.train_lm(texts, GPT, GPTConfig)
        if self.segment:
            self.cut_after = uncertain_bigrams(texts, self.cut_rate)
        own = 0 if self.fuzzy else 1  # codewords that a string keeps for itself
        predict = byte_lm.predictor(self.lm)
        self.codebook = list_codebook(predict, 2 ** self.bits, own, byte_lm.LM_BYTES)

        # Symbols are the codewords that a part of the texts uses, and those of single bytes, nodes
        # 1 to 256. Any other would be a row of the model's output layer that it learns never to
        # choose.
        trie = Trie(self.codebook)
        used = set(range(1, 257))
        every_nth = max(1, sum(map(len, texts)) // self.keep_bytes)
        for text in texts[::every_nth]:
            for segment in self.segments(text):
                used.update(trie.walk(segment))
        used.discard(0)  # no text
        kept = {self.codebook[trie.strings[node]] for node in used}
        self.kept_codewords = np.array(sorted(kept))
        return self.build()

    def build(self):
        """Number the kept codewords, and find out how each string of the trie is written with them.

        Nodes come shortest first, so `encode_segment`, which looks `node_symbols` up, can already
        write any shorter string. In the example, if 10 (baa) were not kept, "baa" would be written
        as its longest kept beginning, "ba" (9), and then the rest, "a" (1).
        """
        self.trie = Trie(self.codebook)
        self.n_symbols = len(self.kept_codewords)
        symbol_of = dict(zip(self.kept_codewords.tolist(), range(self.n_symbols)))
        self.symbol_strings = [b""] * self.n_symbols  # the longest, if several share a symbol
        self.node_symbols = [[]]                      # what the string of each node is written as
        for string in self.codebook:
            beginning = string
            while self.codebook[beginning] not in symbol_of:
                beginning = beginning[:-1]
            symbol = symbol_of[self.codebook[beginning]]
            if beginning == string:
                self.symbol_strings[symbol] = string
            # shorter than `string`, so node_symbols has already all that it can be written with
            rest = string[len(beginning):]
            self.node_symbols.append([symbol, *self.encode_segment(rest)])
        # the same as an array, for encode_batch, with -1 where a node has no more symbols
        columns = itertools.zip_longest(*self.node_symbols, fillvalue=-1)
        self.symbol_table = np.array(list(columns), np.int32).T  # (nodes, most symbols of a node)
        if not self.fuzzy:
            self.symbol_lengths = np.array([len(string) for string in self.symbol_strings])
        return self

    def segments(self, text):
        """The pieces of a text that are coded on their own, a list of bytes. The last one may still
        grow, or be empty.

        The coder forgets there what came before, so equal segments are coded equally, and a change
        of the text does not spread. In tinycode the segments look like this:

            def |add_|up(values):\\n    return |s|um(|values)\\n
        """
        # a text is taken to follow the end of a line
        data = np.frombuffer(b"\n" + text, np.uint8).astype(np.uint16)
        bigrams = data[:-1] * 256 + data[1:]  # (bytes,): that byte, and the one before it
        cuts = np.flatnonzero(self.cut_after[bigrams]) + 1
        edges = [0, *cuts.tolist(), len(text)]
        return [text[start:end] for start, end in itertools.pairwise(edges)]

    def encode_segment(self, segment):
        """The symbols of a segment, a list, whatever comes before it."""
        symbols = []
        for node in self.trie.walk(segment):
            symbols += self.node_symbols[node]
        return symbols

    def encode(self, text):
        symbols = []
        for segment in self.segments(text):
            symbols += self.encode_segment(segment)
        return np.array(symbols, dtype=self.dtype)

    def encode_prompt(self, text):
        """All but the last window, which may still grow; or all, if the text ends where a segment
        does."""
        last_segment = self.segments(text)[-1]
        *_, last_node = self.trie.walk(last_segment)
        rest = self.trie.strings[last_node]
        return self.encode(text[:len(text) - len(rest)]), rest

    def decode(self, symbols):
        return b"".join([self.symbol_strings[symbol] for symbol in np.asarray(symbols).tolist()])

    # -------------------------------------------------------------------------
    # `encode` of many texts at once, several times as fast: the rest of the class may be skipped

    def encode_batch(self, texts):
        """`encode` of each text, a list: the windows of all of them are found side by side."""
        segments = itertools.chain.from_iterable(map(self.segments, texts))
        node_at = self.walk_all(list(filter(None, segments)))
        window_ends = np.flatnonzero(node_at)              # (windows,) at which byte
        written = self.symbol_table[node_at[window_ends]]  # (windows, most symbols of a node)
        is_symbol = written >= 0
        symbols = written[is_symbol].astype(self.dtype)    # of all texts, end to end
        # how many windows, then how many symbols, each text and those before it have
        text_ends = np.cumsum([len(text) for text in texts])
        n_windows = np.searchsorted(window_ends, text_ends)
        n_symbols = np.append(0, is_symbol.sum(axis=1).cumsum())[n_windows]
        return np.split(symbols, n_symbols)[:-1]  # nothing is left after the last text

    def walk_all(self, segments):
        """What `Trie.walk` yields for each of the segments, none of them empty, an array (bytes,)
        over all of their bytes: at the last byte of a window its node, elsewhere 0.

        The segments are walked side by side, a byte at a time. The longest come first, so those
        that are not at their end are always the first n:

            byte     0 1 2 3 4 5
            "return" r e t u r n     n = 3 for bytes 0 and 1, 2 for bytes 2 and 3, then 1
            "self"   s e l f
            "if"     i f
        """
        child = self.trie.child
        data = np.frombuffer(b"".join(segments), np.uint8)
        node_at = np.zeros(len(data), np.int32)
        lengths = np.array([len(segment) for segment in segments], dtype=int)
        longest_first = np.argsort(-lengths, kind="stable")
        position = (np.cumsum(lengths) - lengths)[longest_first]  # of each segment's next byte
        node = np.zeros(len(segments), np.int32)                  # where each is in the trie
        # [t]: how many segments are longer than t bytes
        n_longer = len(lengths) - np.cumsum(np.bincount(lengths))
        for n in n_longer[:-1].tolist():             # the last is 0
            byte = data[position[:n]]
            next_node = child[node[:n], byte]
            full = np.flatnonzero(next_node == 0)    # there is no way on: the window ends
            node_at[position[full] - 1] = node[full]
            next_node[full] = child[0, byte[full]]   # from the root again
            node[:n] = next_node
            position[:n] += 1
        node_at[position - 1] = node  # the last window of each segment
        return node_at


# -----------------------------------------------------------------------------
# all of them, by name

PROXIES.update({proxy.kind: proxy for proxy in (Tokenizer, Neural, Gzip)})


@dataclass
class ProxyOptions:
    data: str = flag("tinycode", f"corpus: {', '.join(BUILT_IN)}, a folder, a file of text, or "
                     "rows with text or content in .jsonl[.gz|.zst] or .parquet; or several, "
                     "a:0.7,b:0.3")
    text_column: str = flag("", "field of the rows that has the text [text or content]")
    proxy: str = flag("neural", f"compressor: none (raw bytes only), {', '.join(PROXIES)}, or one "
                      "of your own, FILE.py:CLASS")
    tokenizer: str = flag("1024", "tokenizer proxy: number of BPE symbols to fit")
    bits: int = flag(12, "neural proxy: bits in a window, 9 to 16; at most 2**bits symbols")
    fuzzy: bool = flag(False, "neural proxy: the paper's many-to-one code, not the exact one")
    segment: bool = flag(True, "neural proxy: text cut first where the next byte is uncertain")


def proxy_of(options):
    """The unfitted proxy that the ProxyOptions name, "none" refused. Raises UserError."""
    cls = proxy_class(options.proxy)
    return cls(**{name: getattr(options, name) for name in cls.settings})


def make_proxy(options):
    """The unfitted proxy that the options name, or None for --proxy=none, raw bytes only."""
    return None if options.proxy == "none" else proxy_of(options)


# -----------------------------------------------------------------------------
# python proxies.py

# the longest sample of a default training, (768 - 4) // 2: so its proxy is found in the cache
TRAINING_BYTES = 382
TABLE_BYTES = 500_000  # of held-out text for the table, about
REPORTED = [           # what is in the table, if no proxy is named
    dict(proxy="tokenizer", tokenizer="1024"),
    dict(proxy="tokenizer", tokenizer="4096"),
    dict(proxy="tokenizer", tokenizer="16384"),
    dict(proxy="neural", bits=9),
    dict(proxy="neural", bits=12),
    dict(proxy="neural", bits=16),
    dict(proxy="neural", bits=9, segment=False),
    dict(proxy="neural", bits=12, segment=False),
    dict(proxy="neural", bits=16, segment=False),
    dict(proxy="neural", bits=12, fuzzy=True),
    dict(proxy="neural", bits=16, fuzzy=True),
    dict(proxy="gzip"),
    dict(proxy="runs/controls.py:PresetGzip"),
    dict(proxy="runs/controls.py:Shuffled"),
]


@dataclass
class ShowOptions(ProxyOptions):
    proxy: str = flag("", f"compressors to show: {', '.join(PROXIES)}, FILE.py:CLASS, or several "
                      "with commas [all but your own]")
    text: str = flag(None, "text to cut into symbols", positional=True, nargs="?")
    report: bool = flag(False, "proxy table for --data, in place of a text: of those in --proxy, "
                        "or of all in several settings")
    sample_bytes: int = flag(2048, "longest sample in the table")


def to_show(options):
    """The unfitted proxies that are to be shown, a list. Raises UserError."""
    if options.proxy:
        choices = [dict(proxy=name) for name in options.proxy.split(",")]
    elif options.report:
        choices = REPORTED
    else:
        choices = [dict(proxy=kind) for kind in PROXIES]
    return [proxy_of(replace(options, **choice)) for choice in choices]


def main(options):
    if (options.text is None) != options.report:
        raise UserError("expected either a text to cut into symbols, or --report")
    if options.sample_bytes < 5:
        raise UserError(f"--sample_bytes={options.sample_bytes}: expected 5 or more")
    unfitted = to_show(options)
    longest = options.sample_bytes if options.report else TRAINING_BYTES
    views = open_samples(options.data, options.text_column, longest)
    fitted = []
    lm = None  # the first neural proxy to be fitted trains it, others reuse it; the rest ignore it
    for proxy in unfitted:
        proxy.lm = lm
        fitted.append(fitted_proxy(views, proxy, load_proxy)[0])
        lm = proxy.lm
    if options.report:
        texts = [views.raw(i).tobytes() for i in np.flatnonzero(views.held_out)]
        every_nth = max(1, sum(map(len, texts)) // TABLE_BYTES)
        print_proxy_table(options.data, fitted, texts[::every_nth])
        return
    for proxy in fitted:
        show_symbols(proxy, options.text.encode("utf-8", "surrogateescape"))


if __name__ == "__main__":
    sys.modules["proxies"] = sys.modules["__main__"]  # the module that a file of your own imports
    command_line(main, ShowOptions, description="Shows what the proxies do to a text or a corpus.")
