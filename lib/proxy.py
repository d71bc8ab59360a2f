"""
What every proxy has: its interface, its key, its file, and how --proxy finds its class.

proxies.py has the compressors, and enters them in PROXIES. One of your own is a subclass of Proxy
in a file of yours: --proxy=FILE.py:CLASS.
"""
import importlib.util
import os
import sys
from pathlib import Path

import numpy as np

from lib.data import ROOT, code_of, key as hash_of
from lib.options import UserError, expect_one_of
from lib.views import write_torch
# torch is imported where it is used: a process that only encodes is smaller by 140 MB without it

PROXIES = {}         # the built-in ones, {kind: class}; proxies.py enters them
CHECKED_TEXTS = 100  # how many of the texts that a proxy was fitted on `check` tries


class Proxy:
    """A compressor. A subclass defines `encode` and `decode`; if it learns, it overrides `fit`, and
    lists in `learned` the attributes that this sets.

    Fitted or loaded, it has `n_symbols` and, if each symbol stands for known bytes,
    `symbol_lengths`: how many, an int64 array (n_symbols,). A text has at most one symbol a byte,
    and `overhead` more.
    """
    kind = ""       # the --proxy value of a built-in one; its name begins with it
    address = ""    # FILE.py:CLASS of a proxy of your own; `proxy_class` sets it
    settings = ()   # names of the options that it takes: arguments and attributes
    learned = ()    # names of the attributes that `fit` sets, and its file has to keep
    fitted_by = ()  # functions, classes and files that decide, besides its class, how it encodes
    n_symbols = 0
    symbol_lengths = None
    overhead = 0
    fuzzy = False   # whether several texts may have the same symbols

    @property
    def name(self):
        """What it is called in the cache and on the screen."""
        return self.kind

    def fit(self, texts):
        """Learn from `texts`, a list of bytes. Returns `self.build()`."""
        return self.build()

    def build(self):
        """Set up what follows from what was learned. Returns self."""
        return self

    def encode(self, text):
        """The symbols (n,) of a text, bytes."""
        raise UserError(f"--proxy={self.name}: its class does not define encode(self, text)")

    def encode_batch(self, texts):
        """The symbols of each text, a list. Overridden where many texts are faster than one."""
        return [self.encode(text) for text in texts]

    def encode_prompt(self, text):
        """(symbols, rest) of a text that will go on: the symbols that stay the same whatever
        follows, and the bytes after them, which may share a symbol with what follows.

        For proxies with `symbol_lengths`. Overridden where more than the last symbol may change.
        """
        symbols = self.encode(text)[:-1]
        return symbols, text[len(self.decode(symbols)):]

    def decode(self, symbols):
        """The text, bytes, of some symbols; of the paper's fuzzy code not always the one that was
        encoded."""
        raise UserError(f"--proxy={self.name}: its class does not define decode(self, symbols)")

    def symbol_bytes(self):
        """The bytes that each symbol stands for, a list; None for each if that is not known."""
        if self.symbol_lengths is None:
            return [None] * self.n_symbols
        return [self.decode([symbol]) for symbol in range(self.n_symbols)]

    @property
    def dtype(self):
        """The smallest dtype that holds every symbol; views are stored in it."""
        return np.min_scalar_type(self.n_symbols - 1)

    def key(self):
        """12 hex digits that tell it, fitted or not, from all others in the cache: a hash of its
        settings and of its code. Comments, docstrings and layout do not count."""
        parts = [*type(self).__mro__[:-1], *self.fitted_by]  # its class and its bases, not `object`
        if self.address:  # all of the file counts: nothing is forgotten
            parts.append(ROOT / self.address.rpartition(":")[0])
        settings = [getattr(self, name) for name in self.settings]
        return hash_of(self.address, settings, list(map(code_of, parts)))

    def state(self):
        """All that decides how it encodes: a dict of arrays, and of what torch.save takes."""
        names = (*self.settings, *self.learned)
        return {"proxy": self.address or self.kind} | {name: getattr(self, name) for name in names}

    @classmethod
    def from_state(cls, state):
        """A fitted proxy, from what `state` returned."""
        proxy = cls(**{name: state[name] for name in cls.settings})
        for name in cls.learned:
            setattr(proxy, name, state[name])
        return proxy.build()

    def save(self, path):
        """Write the file that `load_proxy` reads. Raises UserError."""
        import torch
        state = self.state()
        for name, value in state.items():
            if isinstance(value, np.ndarray):  # torch.load reads tensors without trusting the file
                state[name] = torch.from_numpy(value)
        write_torch(path, state)

    def __reduce__(self):
        """Pickled is what its file has: a helping process gets it so, and needs no torch."""
        if self.address:
            return own_from_state, (self.state(),)
        return type(self).from_state, (self.state(),)

    def check(self, texts):
        """Raise a UserError where it breaks its word on the texts that it was fitted on: else a
        model would be trained on symbols that stand for something else."""
        texts = texts[:CHECKED_TEXTS]
        encoded = self.encode_batch(texts)
        encoded_again = self.from_state(self.state()).encode_batch(texts)
        lengths = self.symbol_lengths
        for text, symbols, again in zip(texts, encoded, encoded_again):
            if not np.array_equal(symbols, again):
                fault = "what it learned is lost when it is saved; name it in `learned`"
            elif min(symbols, default=0) < 0 or max(symbols, default=-1) >= self.n_symbols:
                fault = f"a symbol that is not from 0 to below n_symbols={self.n_symbols}"
            elif len(symbols) > len(text) + self.overhead:
                fault = f"more symbols than bytes and overhead={self.overhead}"
            elif lengths is not None and lengths[symbols].sum() != len(text):
                fault = "symbol_lengths whose sum is not the text's length"
            elif not self.fuzzy and self.decode(symbols) != text:
                fault = "decode does not give back what was encoded; if that is meant, set fuzzy"
            else:
                continue
            raise UserError(f"--proxy={self.name}: {fault} (of {text[:20]!r} ..)")


def proxy_class(name):
    """The class that --proxy or a file names: a kind, or FILE.py:CLASS, with FILE as seen from the
    working folder or from this project's. Raises UserError."""
    if name in PROXIES:
        return PROXIES[name]
    file, _, class_name = name.rpartition(":")
    if not file.endswith(".py"):
        expect_one_of("proxy", name, ["none (in a training)", *PROXIES, "FILE.py:CLASS"])
    path = Path(file) if Path(file).exists() else ROOT / file
    if not path.exists():
        raise UserError(f"--proxy={name}: there is no file {file}")
    module_name = f"proxies_{hash_of(str(path.resolve()))}"  # no other's; key() looks there
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, path)
        sys.modules[module_name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[module_name])
    cls = getattr(sys.modules[module_name], class_name, None)
    if not isinstance(cls, type) or not issubclass(cls, Proxy):
        raise UserError(f"--proxy={name}: {file} has no class {class_name} that is derived from "
                        "Proxy")
    cls.address = f"{os.path.relpath(path, ROOT)}:{class_name}"
    return cls


def own_from_state(state):
    """A fitted proxy of your own, by the address in its state."""
    return proxy_class(state["proxy"]).from_state(state)


def load_proxy(path, advice="delete it and run again"):
    """The proxy that was saved at `path`. Raises UserError, with advice, if that is no proxy file,
    or if the FILE.py:CLASS that it names is gone."""
    import torch
    try:
        state = torch.load(path, weights_only=True)
        for name, value in state.items():
            if isinstance(value, torch.Tensor):
                state[name] = value.numpy()
        return proxy_class(state["proxy"]).from_state(state)
    except Exception as error:  # whatever a broken file makes torch throw
        raise UserError(f"{path} is not a proxy that this version wrote ({type(error).__name__}: "
                        f"{error}); {advice}") from None
