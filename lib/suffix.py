"""
Suffixes: the text that ends at a position, its last 7 bytes packed into one integer. The n-gram
features of model.py are made of them, and whatever calls the model packs them.
"""
SUFFIX_BYTES = 7  # of the 8 in an int64, so that a suffix is never negative


def pack_suffix(text):
    """The last SUFFIX_BYTES bytes at each position of `text`, packed: an int64 tensor (..., T).

    text: byte values, an integer tensor (..., T). The lowest byte of a suffix is the one at its
    position,

        text        a     b       c
        suffix      0x61  0x6162  0x616263

    A suffix of 0 means "no text here" (or NUL bytes alone): it has no n-gram features.
    """
    text = text.long()
    suffix = text.clone()
    for distance in range(1, min(SUFFIX_BYTES, text.size(-1))):
        suffix[..., distance:] |= text[..., :-distance] << (8 * distance)
    return suffix


def next_suffix(suffix, byte):
    """The suffix after one more `byte`, for generation: ints, or int64 tensors of one shape."""
    return ((suffix << 8) | byte) & (2 ** (8 * SUFFIX_BYTES) - 1)
