"""
Where a long text is cut: lib/corpus.py makes documents of a long file so, and lib/store.py makes
samples of documents.
"""
import io

from lib.files import READ_BYTES

TEXT_PIECE = 4096       # bytes: a .txt file is documents of this size, so that some are held out
LONGEST_FILE = 2 ** 26  # bytes: a longer file, of whatever name, is cut as a .txt file is


def end_of_piece(text, start, longest):
    """Where the piece of `text` (bytes) that begins at `start` ends, at most `longest` bytes later.

    It ends after the last newline in reach; where there is none, between two UTF-8 characters. So
    with longest = 7 the pieces of b"ab\\ncd\\nefgh" are b"ab\\ncd\\n" and b"efgh".
    """
    limit = start + longest
    if limit >= len(text):
        return len(text)
    line_end = text.rfind(b"\n", start, limit) + 1
    if line_end:
        return line_end
    # A byte 10xxxxxx continues a character. A character has at most 4 bytes, so in valid text one
    # begins 3 steps back or nearer; what is not UTF-8 may be cut anywhere.
    end = limit
    while end > limit - 4 and text[end] & 0b11000000 == 0b10000000:
        end -= 1
    return end


def pieces(file, longest):
    """Yield a binary file in pieces of at most `longest` bytes (5 or more), by `end_of_piece`.

    Only about READ_BYTES of the file are in memory at a time.
    """
    text = b""
    start = 0
    while True:
        if len(text) - start <= longest:
            # the next piece ends with what has been read, unless the file goes on
            text = text[start:] + file.read(max(longest, READ_BYTES))
            start = 0
        if not text:
            return
        end = end_of_piece(text, start, longest)
        yield text[start:end]
        start = end


def cut_at_lines(text, longest):
    """`text` (bytes) as a list of pieces of at most `longest` bytes, by `end_of_piece`."""
    if len(text) <= longest:  # as most documents of a corpus of small ones are
        return [text] if text else []
    return list(pieces(io.BytesIO(text), longest))
