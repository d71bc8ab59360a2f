"""
The mixed stream: what the model is trained on.

Each sample of the corpus has two views, its raw bytes and the proxy's symbols. A view stands in the
stream between sentinels, which tell the model what it reads: `<raw> bytes </raw>` or `<comp>
symbols </comp>`. Samples are packed into contexts of a fixed size:

    corpus -> samples (cut at line ends) -> both views of each, on disk (lib/views.py)
           -> draw a view for each sample, or both -> sentinels -> pack into contexts

The share of compressed views is the *mixing rate* r. It rises from 0.4 to `mix`, 0.9. While it
does, a sample may be shown as a *translation pair*: both of its views in one context, one after the
other, so the model can learn that they say the same thing. Then r stays at `mix`. In a last *raw
phase* it falls to 0, and a small model ends on the raw bytes that it will be used with. So far down
and for so long is ours: the paper's, optional, lowers r. With --paper, as from 124M up, r stays.

r counts views, not symbols: at r = 0.9 and 3.8 bytes a symbol (the neural proxy on tinycode, the
default corpus) seven symbols of ten are the proxy's.

For given data and options a row of a batch is a function of (seed, step, row), and of no earlier
row. So there is no loader state to save, resuming is exact, and one process or eight train on the
same batches.

    python mix.py                      some training contexts, sentinels shown, views in colour
"""
import contextlib
from dataclasses import dataclass

import lib  # first: it says what is missing or too old
import numpy as np
import torch

from lib.attention import pack_suffix
from lib.options import UserError, command_line, expect, expect_one_of, flag
from lib.tables import show_context
from lib.views import ANY, COMP_ONLY, RAW_ONLY, encode, fitted_proxy, open_samples
from model import BYTE0, NO_TARGET, PROXY0, loss_groups
from proxies import ProxyOptions, load_proxy, make_proxy

# the special symbols in use, ids below BYTE0
PAD, BOS, EOS, RAW, END_RAW, COMP, END_COMP = range(7)

MODES = {
    "translation_random": "pairs, in either order",
    "translation_raw_compressed": "pairs, raw bytes first",
    "translation_compressed_raw": "pairs, symbols first",
    "parallel": "pairs whose views can't see each other",
    "sentinel": "no pairs",
    "vanilla": "no pairs, BOS and EOS around every view",
}
NO_PAIRS = ("sentinel", "vanilla")
MIN_ROOM = 16  # symbols: a context with less room left is padded
SHORTEST = 32  # bytes: the least that the limit on a sample's length may be


@dataclass
class MixOptions(ProxyOptions):
    # the mixing rate over the training
    mix: float = flag(0.9, "mixing rate r, the share of compressed views; 0: raw bytes only, 1: "
                      "the proxy only")
    mix_start: float = flag(0.4, "r at the start of its warm-up")
    mix_warmup: float = flag(0.2, "share of the training in which r rises and pairs are shown")
    raw_phase: float = flag(0.6, "last share of the training, in which r falls to 0")
    # how views are shown
    pairs: str = flag("warmup", "when pairs are drawn", choices=("warmup", "always"))
    mode: str = flag("translation_random",
                     "; ".join(f"{name}: {what}" for name, what in MODES.items()))
    sample_mask: bool = flag(True, "attention that stays inside a sample, or a pair")
    seed: int = flag(1337, "seed of the weights and the batches")

    def resolve(self):
        """Fill in what other options decide. Raises UserError where they contradict each other."""
        expect(self, "from 0 to 1", "mix", "mix_start", "mix_warmup", "raw_phase")
        expect(self, "from 0 to 2**63 - 1", "seed")
        expect_one_of("mode", self.mode, MODES)
        if self.mix_warmup + self.raw_phase > 1:
            raise UserError(f"--mix_warmup={self.mix_warmup} and --raw_phase={self.raw_phase}: "
                            "expected a sum of at most 1")
        if self.mode == "parallel" and not self.sample_mask:
            raise UserError("--mode=parallel --no-sample_mask: without the mask the views of a "
                            "pair see each other; use --mode=translation_random")
        if self.proxy == "none":
            self.mix = 0.0


def prepare(options, block_size):
    """(views, proxy, its file) for `options.data` and `options.proxy`: from the cache, or made now.
    Without a proxy the last two are None. Raises UserError.

    A sample is cut so that a pair fits in a context: both of its views and their four sentinels.
    A proxy makes at most one symbol a byte, and its `overhead` more. Raw bytes, the tokenizer and
    the neural proxy have no overhead, so they see the same samples; gzip's are 16 bytes shorter.
    """
    unfitted = make_proxy(options)
    # a pair has at most two symbols a byte, four sentinels, and the proxy's overhead
    fixed_cost = 4 + (unfitted.overhead if unfitted else 0)
    longest = (block_size - fixed_cost) // 2
    if longest < SHORTEST:
        raise UserError(f"block size {block_size}: too small for a pair of views, expected at "
                        f"least {fixed_cost + 2 * SHORTEST}")
    views = open_samples(options.data, options.text_column, longest)
    for held_out in (False, True):
        make_pools(views, options, held_out)  # what it refuses is refused before a long fit
    if unfitted is None:
        return views, None, None
    proxy, path = fitted_proxy(views, unfitted, load_proxy)
    encode(views, proxy, path.parent)  # sets views.comp and views.symbol_lengths
    return views, proxy, path


# -----------------------------------------------------------------------------
# how a sample is shown


@dataclass
class View:
    """One sample, raw or compressed, between its sentinels."""
    symbols: np.ndarray  # (n,) what the model reads
    suffix: np.ndarray   # (n,) the text that ends with each symbol, packed; 0 at a sentinel
    text_bytes: int      # how much text it stands for


def format_view(raw, comp=None, symbol_lengths=None, mode="sentinel", with_suffix=True):
    """The View of a sample: raw, or compressed where `comp` is given.

    raw: its bytes, uint8. comp: its proxy symbols. symbol_lengths: how many bytes each proxy symbol
    stands for; None where that is not known, as of gzip's: a compressed view then has suffix 0
    throughout. with_suffix: False leaves all suffixes out. In the View a byte b is BYTE0 + b and a
    proxy symbol s is PROXY0 + s; the example shows b and s.

        text        def_f             proxy symbol 17 stands for "def", and 9 for "_f"
        raw view    <raw> d  e  f  _  f </raw>      suffixes 0  d  de  def  def_  def_f  0
        comp view   <comp> 17  9 </comp>            suffixes 0  def  def_f  0
    """
    if comp is None:
        opening, closing = RAW, END_RAW
        body = raw.astype(np.int64) + BYTE0
        ends = np.arange(1, len(raw) + 1)  # where in the text each symbol ends
    else:
        opening, closing = COMP, END_COMP
        body = comp.astype(np.int64) + PROXY0
        ends = None if symbol_lengths is None else np.cumsum(symbol_lengths[comp])
    if mode == "vanilla":
        opening, closing = BOS, EOS  # the model has to find out which view it reads
    symbols = np.concatenate(([opening], body, [closing]))
    suffix = np.zeros(len(symbols), np.int64)
    if with_suffix and ends is not None:
        suffix[1:-1] = np.append(0, suffixes(raw))[ends]  # an end may be 0: no text yet
    return View(symbols, suffix, len(raw))


def suffixes(raw):
    """The suffix at each byte of a text, byte values (n,): int64 (n,)."""
    return pack_suffix(torch.from_numpy(raw.astype(np.int64))).numpy()


def view_probabilities(r, pairs):
    """The chances {"raw", "comp", "pair"} that a sample is shown raw, compressed or as a pair, such
    that the share r of all views is compressed.

    Without pairs they are 1 - r and r: each sample is compressed with probability r. With pairs it
    is not so, since a pair adds one view of each kind, and r counts views. With x raw samples, y
    compressed ones and z pairs, x + y + z = 1, the share of compressed views is

        r = (y + z) / (x + y + 2z) = (y + z) / (1 + z)

    To show as many pairs as possible (the paper's calibration):

        r <= 1/2   with y = 0:   z / (1 + z) = r,  so  z = r / (1 - r)  and  x = 1 - z
        r >  1/2   with x = 0:   1 / (1 + z) = r,  so  z = 1 / r - 1    and  y = 1 - z = 2 - 1 / r
    """
    if not pairs:  # each sample is one view
        return {"raw": 1 - r, "comp": r, "pair": 0.0}
    if r <= 0.5:
        return {"raw": 1 - r / (1 - r), "comp": 0.0, "pair": r / (1 - r)}
    return {"raw": 0.0, "comp": 2 - 1 / r, "pair": 1 / r - 1}


class Context:
    """One row of a batch while it is being filled, from left to right.

    Here a pair, then the beginning of a raw sample that is cut where the context ends. A target is
    the symbol that follows; `.` is none. A closing sentinel has none where a sample ends: what
    follows was drawn independently, so there is nothing to learn of it.

        symbols   <raw>   d     e     f     </raw>  <comp>  17       </comp>  <raw>   x     =     1
        targets   d       e     f    </raw> <comp>  17      </comp>  .        x       =     1     .
        sample    1       1     1     1     1       1       1        1        2       2     2     2
    """
    def __init__(self, size):
        self.symbols = np.full(size, PAD)        # what the model reads
        self.targets = np.full(size, NO_TARGET)  # what comes next
        self.suffix = np.zeros(size, np.int64)   # for the n-gram features
        self.sample = np.zeros(size, np.int64)   # sample numbers, rising; attention stays in one
        self.filled = 0
        self.sample_number = 0                   # of what is being written
        self.text_bytes = 0.0                    # a pair counts twice, a cut view in proportion

    @property
    def room(self):
        return len(self.symbols) - self.filled

    def write(self, view, length, same_sample=False):
        """Write the first `length` symbols of a view. Each has the next as its target, the last
        none. same_sample: it sees the view before, as the second of a pair does."""
        if not same_sample:
            self.sample_number += 1
        start, stop = self.filled, self.filled + length
        self.symbols[start:stop] = view.symbols[:length]
        self.suffix[start:stop] = view.suffix[:length]
        self.sample[start:stop] = self.sample_number
        self.sample[stop:] = self.sample_number + 1  # what stays empty is a sample of its own
        self.targets[start:stop - 1] = view.symbols[1:length]
        self.text_bytes += view.text_bytes * length / len(view.symbols)
        self.filled = stop


# -----------------------------------------------------------------------------
# the mixer


class Pool:
    """The samples that may be shown in one way, and how to draw one of them.

    Sources in --data may have weights, shares of the text. Then a source is drawn first, with a
    chance in proportion to its weight divided by the mean length of all its samples: short ones
    have to be drawn more often for the same share of the text.
    """
    def __init__(self, samples, views):
        self.samples = samples  # (n,) their numbers, sorted
        first_samples, weights = zip(*views.sources)
        # the samples of each source, where views.sources has (first, weight); there may be none
        self.sources = np.split(samples, np.searchsorted(samples, first_samples[1:]))
        n_bytes = np.add.reduceat(views.raw.lengths, first_samples, dtype=np.int64)
        mean_length = n_bytes / np.diff([*first_samples, len(views)])
        has_samples = [len(some) > 0 for some in self.sources]
        self.chances = weights / mean_length * has_samples  # of each source, not normalized

    def draw(self, rng):
        """The number of a sample, drawn with replacement: so no row depends on an earlier one."""
        source = 0
        if len(self.sources) > 1:
            source = rng.choice(len(self.sources), p=self.chances / self.chances.sum())
        of_source = self.sources[source]
        return of_source[rng.integers(len(of_source))]


def make_pools(views, options, held_out):
    """The Pool of each kind: what may be shown "raw", "comp" and as a "pair", of the training
    samples or of the held-out ones. Raises UserError where --mix needs a kind that has none."""
    usable = views.held_out == held_out
    pools = {
        "raw": Pool(np.flatnonzero(usable & (views.allowed != COMP_ONLY)), views),
        "comp": Pool(np.flatnonzero(usable & (views.allowed != RAW_ONLY)), views),
        "pair": Pool(np.flatnonzero(usable & (views.allowed == ANY)), views),
    }
    for kind, is_shown in (("raw", options.mix < 1), ("comp", options.mix > 0)):
        if is_shown and len(pools[kind].samples) == 0:
            what = "held-out" if held_out else "training"
            raise UserError(f"--data={options.data}: no {what} sample may be shown {kind}; "
                            "use another --mix, other data or more of it")
    return pools


class Mixer:
    """Batches of packed contexts, of training samples or of held-out ones.

    total_steps: the length of the training, over which the schedule of r is stretched. with_suffix:
    whether batches have the suffixes that n-gram features look up; they are most of the work.
    """
    def __init__(self, views, options, block_size, total_steps, held_out=False, with_suffix=True):
        self.views = views
        self.options = options
        self.block_size = block_size
        self.total_steps = total_steps
        self.with_suffix = with_suffix
        self.pools = make_pools(views, options, held_out)

    def r(self, step):
        """The mixing rate at a step. It rises to `mix`, stays, and falls to 0 in the raw phase. At
        mix=1, the proxy only, it is 1 throughout."""
        options = self.options
        if options.mix == 1:
            return options.mix
        start = min(options.mix_start, options.mix)  # it never starts above its goal
        end = 0.0 if options.raw_phase else options.mix
        corners = [0, options.mix_warmup, 1 - options.raw_phase, 1]  # as shares of the training
        r_there = [start, options.mix, options.mix, end]
        return float(np.interp(step / self.total_steps, corners, r_there))

    def draws_pairs(self, step):
        """Whether a sample may be shown as a pair at a step."""
        if self.options.mode in NO_PAIRS or len(self.pools["pair"].samples) == 0:
            return False
        in_warmup = step / self.total_steps < self.options.mix_warmup
        return in_warmup or self.options.pairs == "always"

    def probabilities(self, step):
        """How likely a sample is shown as {"raw", "comp", "pair"} at a step."""
        return view_probabilities(self.r(step), self.draws_pairs(step))

    def view(self, index, kind):
        """The View of sample number `index`. kind: "raw" or "comp"."""
        raw = self.views.raw(index)
        comp = self.views.comp(index) if kind == "comp" else None
        return format_view(raw, comp, self.views.symbol_lengths, self.options.mode,
                           self.with_suffix)

    def row(self, step, row, only=None):
        """The Context that is row `row` of the batch of `step`. It depends on no other one.

        only: "raw" or "comp", a context of that view alone, for validation; else the schedule
        decides.

        Samples are drawn and laid end to end until less than MIN_ROOM is left; the last is cut.
        (Were it left out when it does not fit, short views would be taken more often than long
        ones, and r would not be what --mix says.)
        """
        rng = np.random.default_rng((self.options.seed, step, row))
        probabilities = {only: 1.0} if only else self.probabilities(step)
        # one more: the last symbol is the target of the one before it, and `batch` drops its column
        context = Context(self.block_size + 1)
        while context.room >= MIN_ROOM:
            kind = rng.choice(list(probabilities), p=list(probabilities.values()))
            index = self.pools[kind].draw(rng)
            if kind == "pair":
                first, second = [self.view(index, of_pair) for of_pair in self.pair_order(rng)]
                self.write_pair(context, first, second)
            else:
                view = self.view(index, kind)
                context.write(view, min(len(view.symbols), context.room))
        if not self.options.sample_mask:
            context.sample[:] = 0  # all one sample
        return context

    def pair_order(self, rng):
        if self.options.mode == "translation_raw_compressed":
            return "raw", "comp"
        if self.options.mode == "translation_compressed_raw":
            return "comp", "raw"
        # translation_random and parallel
        return ("comp", "raw") if rng.random() < 0.5 else ("raw", "comp")

    def write_pair(self, context, first, second):
        """Both views of one text. If they don't fit, both are cut to the same share of their
        symbols, so that they still cover about the same text."""
        share = min(1.0, context.room / (len(first.symbols) + len(second.symbols)))
        see_each_other = self.options.mode != "parallel"
        context.write(first, int(len(first.symbols) * share))
        if share == 1 and see_each_other:
            # the second view's opening sentinel can be predicted too
            context.targets[context.filled - 1] = second.symbols[0]
        context.write(second, int(len(second.symbols) * share), same_sample=see_each_other)

    def batch(self, step, rows, only=None):
        """Rows `rows`, a range, of the batch of `step`.

        Returns a dict: idx, targets, suffix and sample, int64 tensors (len(rows), block_size), the
        `groups` of idx for the loss (see model.py), and text_bytes, how much text the rows stand
        for.
        """
        contexts = [self.row(step, row, only) for row in rows]

        def stack(name):
            stacked = np.stack([getattr(context, name) for context in contexts])
            return torch.from_numpy(stacked[:, :-1])

        idx = stack("symbols")
        return {"idx": idx, "targets": stack("targets"), "suffix": stack("suffix"),
                "sample": stack("sample"), "groups": loss_groups(idx),
                "text_bytes": sum(context.text_bytes for context in contexts)}


# -----------------------------------------------------------------------------
# python mix.py


def decode_context(symbols, proxy):
    """The views in a context (n,): (kind, text) of each; text is bytes, or None where half a stream
    can't be decoded."""
    (openings,) = np.nonzero(np.isin(symbols, (RAW, COMP, BOS)))
    shown = []
    for view in np.split(symbols, openings)[1:]:
        body = view[view >= BYTE0]
        if view[0] == COMP or (body >= PROXY0).any():
            text = None
            with contextlib.suppress(Exception):  # half a stream can raise anything
                text = proxy.decode((body - PROXY0).tolist())
            shown.append(("comp", text))
        else:
            shown.append(("raw", bytes((body - BYTE0).tolist())))
    return shown


def show(options):
    options.resolve()
    block_size = 768  # symbols, as of the smallest model
    views, proxy, _ = prepare(options, block_size)
    mixer = Mixer(views, options, block_size, total_steps=100)
    for step in (0, 33, 66, 99):
        context = mixer.row(step, 0)
        pairs = "on" if mixer.probabilities(step)["pair"] > 0 else "off"
        show_context(f"step {step} of 100: r = {mixer.r(step):.2f}, pairs {pairs}, "
                     f"{context.text_bytes / block_size:.2f} bytes of text a symbol",
                     decode_context(context.symbols, proxy))


if __name__ == "__main__":
    command_line(show, MixOptions, description="Prints training contexts, decoded.")
