"""
Does a fitted proxy do what proxies.py says that a proxy does?

proxies.py asks once, after it has fitted one. A mistake in a proxy of one's own would otherwise go
unnoticed, and a model be trained on symbols that stand for something else.
"""
import numpy as np

from lib.cut import cut_at_lines
from lib.options import UserError

TEXTS = 100        # so many of those that it was fitted on
TEXT_BYTES = 1000  # the beginning of each, cut as a sample is


def check_proxy(proxy, texts):
    """Raise a UserError where a fitted proxy breaks its word on some of `texts`, of bytes."""
    samples = []
    for text in texts[:TEXTS]:
        samples += cut_at_lines(text, TEXT_BYTES)[:1]
    try:
        read_again = proxy.from_state(proxy.state())  # as it will be read from its file
    except Exception as error:  # whatever a method of one's own raises
        raise UserError(f"--proxy={proxy.kind}: can't be read from its state ({error!r}); override "
                        "state and from_state") from None
    encoded = proxy.encode_batch(samples)
    encoded_again = read_again.encode_batch(samples)
    for text, symbols, symbols_again in zip(samples, encoded, encoded_again, strict=True):
        broken = broken_word(proxy, text, symbols, symbols_again)
        if broken:
            raise UserError(f"--proxy={proxy.kind}: {broken}")


def broken_word(proxy, text, symbols, symbols_again):
    """What is wrong with the symbols of a text, or None. symbols_again: from the proxy that was
    read again."""
    if not np.array_equal(symbols, symbols_again):
        return "what it has learned is lost when it is saved; override state and from_state"
    if len(symbols) > len(text) + proxy.overhead:
        return (f"{len(symbols)} symbols for {len(text)} bytes; expected at most as many as bytes, "
                f"and overhead={proxy.overhead} more")
    for symbol in symbols:
        if not 0 <= symbol < proxy.n_symbols:
            return f"found the symbol {symbol}; expected 0 to less than n_symbols={proxy.n_symbols}"
    if proxy.symbol_lengths is not None and proxy.symbol_lengths[symbols].sum() != len(text):
        return (f"symbol_lengths say {proxy.symbol_lengths[symbols].sum()} bytes of a text that "
                f"has {len(text)}")
    if not proxy.fuzzy and proxy.decode(symbols) != text:
        return "decode does not give back what was encoded; if it is not meant to, set fuzzy"
    return None
