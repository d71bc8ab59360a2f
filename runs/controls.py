"""
Proxies of one's own: the controls of "Why gzip fails" in runs/README.md, and tiktoken's encodings.

    python train.py --proxy=runs/controls.py:Shuffled
    python proxies.py --report --proxy=tokenizer,runs/controls.py:Blind,runs/controls.py:PresetGzip
    python train.py --proxy=runs/controls.py:Tiktoken --tokenizer=o200k_base

--tokenizer counts for all but PresetGzip.
"""
import functools
import hashlib
import zlib

import numpy as np
import tiktoken

from lib.options import UserError, did_you_mean
from proxies import Gzip, Tokenizer


class Blind(Tokenizer):
    """The tokenizer's symbols, but the model is not told which bytes they stand for. So on the
    compressed side there is no alignment and there are no n-gram features, as with gzip."""
    kind = "blind"

    def use(self, encoding):
        super().use(encoding)
        self.symbol_lengths = None
        return self


class Shuffled(Blind):
    """What is stability worth? The tokenizer's symbols, permuted anew for each text: as unstable as
    gzip's, and a symbol longer than the tokenizer's.

    The first symbol is the number of the permutation, a hash of the text.
    """
    kind = "shuffled"
    overhead = 1

    def encode(self, text):
        digest = hashlib.sha256(text).digest()
        number = int.from_bytes(digest[:8], "big") % self.n_symbols
        symbols = permutation(number, self.n_symbols)[super().encode(text)]
        return np.append(number, symbols).astype(self.dtype)

    def decode(self, symbols):
        number, symbols = int(symbols[0]), symbols[1:]
        back = np.argsort(permutation(number, self.n_symbols))
        return super().decode(back[symbols])


@functools.lru_cache(maxsize=1024)
def permutation(number, n):
    """The numbers 0 .. n - 1 in an order that depends on `number`."""
    return np.random.default_rng(number).permutation(n)


class PresetGzip(Gzip):
    """What gzip is made of, deflate, without gzip's header and checksum, and with 32 KB of the
    corpus to refer back to: so it compresses short samples, too."""
    kind = "gzip-zdict"
    learned = ("dictionary",)

    def fit(self, texts):
        text = b"".join(texts)
        starts = np.linspace(0, max(0, len(text) - 1024), 32).astype(int)  # spread evenly
        self.dictionary = b"".join(text[start:start + 1024] for start in starts)
        return self

    def encode(self, text):
        deflate = zlib.compressobj(level=9, wbits=-15, zdict=self.dictionary)  # < 0: no header
        compressed = deflate.compress(text) + deflate.flush()
        return np.frombuffer(compressed, dtype=np.uint8)

    def decode(self, symbols):
        inflate = zlib.decompressobj(wbits=-15, zdict=self.dictionary)
        text = inflate.decompress(np.asarray(symbols, dtype=np.uint8).tobytes())
        if not inflate.eof:
            raise ValueError("the end of the compressed text is missing")
        return text


class Tiktoken(Tokenizer):
    """One of tiktoken's encodings, by its name: --tokenizer=o200k_base. It is downloaded once."""
    kind = "tiktoken"
    learned = ()  # tiktoken has the ranks

    def __init__(self, tokenizer):
        known = tiktoken.list_encoding_names()
        if tokenizer not in known:
            raise UserError(f"--tokenizer={tokenizer}: expected one of {', '.join(known)}"
                            f"{did_you_mean(tokenizer, known)}")
        self.tokenizer = tokenizer

    def fit(self, texts):
        return self.build()

    def build(self):
        try:
            return self.use(tiktoken.get_encoding(self.tokenizer))
        except Exception as error:  # a download: whatever the network throws
            raise UserError(f"--tokenizer={self.tokenizer}: tiktoken could not fetch it "
                            f"({type(error).__name__}: {error}); --proxy=tokenizer fits one "
                            "here") from None
