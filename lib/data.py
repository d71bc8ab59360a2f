"""
From what --data names to documents: the files, the rows in them, the split, and where a text is
cut. lib/views.py makes samples of the documents.

The code of this file is in the key of each cached corpus. So after an edit, but of a comment or a
docstring, no sample of before is used.
"""
import ast
import gzip
import hashlib
import inspect
import io
import json
import math
import os
import textwrap
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib.options import UserError, did_you_mean

ROOT = Path(__file__).resolve().parent.parent  # the project's folder
# a script data/NAME.py makes a built-in corpus: when first asked for, it writes
# data/NAME/corpus.jsonl
BUILT_IN = {script.stem: script for script in sorted((ROOT / "data").glob("*.py"))}

TEXT_COLUMNS = ("text", "content")  # where a row has its text: the first of them that has one
SPLITS = {None: None, "train": False, "val": True, "valid": True, "validation": True, "dev": True,
          "test": True}    # what a row may say of its split, and whether it is then held out
HELD_OUT_SHARE = 0.05      # of the documents whose rows say nothing
PIECE = 2 ** 16            # bytes of a text file that are read at a time


def key(*values):
    """12 hex digits, a hash of values whose `repr` says all about them."""
    return hashlib.sha256(repr(values).encode("utf-8", "surrogatepass")).hexdigest()[:12]


def meaning(source):
    """The syntax tree of a program, as text: no comment, docstring or layout is in it. Raises
    SyntaxError."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        may_have_one = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        if may_have_one and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.dump(tree)


def code_of(thing):
    """The `meaning` of a source file (a path), a class or a function."""
    if isinstance(thing, (str, Path)):
        return meaning(Path(thing).read_text(encoding="utf-8"))
    return meaning(textwrap.dedent(inspect.getsource(thing)))


# -----------------------------------------------------------------------------
# what --data names


def parse_data(data):
    """A list of (name, weight), one for each source in --data, as in "a:0.7,b:0.3"; in "a,b" the
    weights are None. Raises UserError."""
    if os.path.exists(data):  # a path is a path first, even one with a comma or a colon in it
        return [(data, None)]
    sources = []
    for source in data.split(","):
        name, colon, weight = source.rpartition(":")
        try:
            sources.append((name, float(weight)) if colon else (source, None))
        except ValueError:  # no weight; the colon belongs to the name, as in C:\code
            sources.append((source, None))
    weights = {weight for _, weight in sources}
    if weights != {None} and not all(weight and 0 < weight < math.inf for weight in weights):
        raise UserError(f"--data={data}: expected a weight above 0 for every source, "
                        "as in a:0.7,b:0.3, or for none")
    return sources


def find_files(root, left_out):
    """{name: path} of a file, or of the files in a folder. Names have "/" between folders on every
    system.

    Names that begin with a dot are passed over, and so are caches, runs, and links to a folder,
    perhaps to one above. left_out: as for `documents`. Raises UserError.
    """
    if os.path.isfile(root):
        return {os.path.basename(root): root}
    if not os.path.isdir(root):
        raise UserError(f"--data={root}: no such file or folder, nor one of "
                        f"{', '.join(BUILT_IN)}{did_you_mean(root, BUILT_IN)}")

    files = {}
    for folder, subfolders, names in os.walk(root, onerror=left_out["folders not read"].append):
        is_cache = "CACHEDIR.TAG" in names  # https://bford.info/cachedir
        is_run = "config.json" in names and "log.jsonl" in names
        if folder != root and (is_cache or is_run):
            subfolders.clear()
            continue
        # sorted, as the order on disk differs between machines, and batches depend on it
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            path = os.path.join(folder, name)
            if not name.startswith(".") and os.path.isfile(path):
                files[Path(os.path.relpath(path, root)).as_posix()] = path
    return files


# -----------------------------------------------------------------------------
# rows: JSON lines and parquet


def rows_and_blanks(path):
    """Yield each row of a .jsonl[.gz|.zst] or .parquet file, a dict, and None for a blank line."""
    name = str(path).lower()
    if name.endswith(".parquet"):
        from pyarrow import parquet
        with parquet.ParquetFile(path, buffer_size=2 ** 20) as file:
            for batch in file.iter_batches(64):  # a row may be megabytes
                yield from batch.to_pylist()
        return
    if name.endswith(".gz"):
        lines = gzip.open(path)
    elif name.endswith(".zst"):
        import pyarrow  # unlike zstandard's own reader, it notices where a file is cut off
        lines = io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"), 2 ** 20)
    else:
        lines = open(path, "rb")
    with lines:
        for line in lines:
            row = json.loads(line) if line.strip() else None
            if not isinstance(row, dict | None):
                raise ValueError("not an object")
            yield row


def read_jsonl(path):
    """Yield (line number, dict) for each row of a .jsonl[.gz|.zst] or .parquet file.

    Raises UserError for a file that is not there, or has something else in it.
    """
    number = 0
    try:
        for number, row in enumerate(rows_and_blanks(path), 1):
            if row is not None:
                yield number, row
    except ImportError:
        raise UserError(f"{path}: reading it needs a package, pip install pyarrow") from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, OSError, EOFError, zlib.error, RuntimeError) as error:
        raise UserError(f"{path}, near line {number + 1}: expected JSON lines, or parquet "
                        f"({error})") from None


def read_log(path):
    """Yield the rows of a log. What is no whole line is left out: its writer was killed, or met a
    full disk."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def has_rows(path):
    """Whether a file has rows, by its name; a .json if its first line is a row with text."""
    name = path.lower().removesuffix(".gz").removesuffix(".zst")
    if not name.endswith(".json"):
        return name.endswith((".jsonl", ".ndjson", ".parquet"))
    try:
        _, row = next(read_jsonl(path), (0, {}))
    except UserError:
        return False
    return any(column in row for column in TEXT_COLUMNS)


# -----------------------------------------------------------------------------
# where a text is cut


def pieces(file, longest):
    """Yield a binary file in pieces of at most `longest` bytes (5 or more).

    A piece ends after the last newline in reach; where there is none, between two UTF-8 characters.
    So with longest = 7 the pieces of b"ab\\ncd\\nefgh" are b"ab\\ncd\\n" and b"efgh".
    """
    text = file.read(longest + 1)  # with the one byte more it is seen whether it goes on
    while text:
        end = len(text)
        if end > longest:
            newline = text.rfind(b"\n", 0, longest)
            end = longest if newline < 0 else newline + 1
            # A byte 10xxxxxx continues a character. A character has at most 4 bytes, so in valid
            # text one begins 3 steps back or nearer; what is not UTF-8 may be cut anywhere.
            while end > longest - 4 and text[end] & 0b11000000 == 0b10000000:
                end -= 1
        yield text[:end]
        text = text[end:]
        text += file.read(longest + 1 - len(text))


# -----------------------------------------------------------------------------
# documents


@dataclass
class Document:
    """One text of a corpus, or the next piece of a long one. It is trained on or held out whole."""
    name: str                     # documents of one name are on the same side of the split
    text: bytes
    view: str | None = None       # "raw" or "comp" where this is the only view that training shows
    held_out: bool | None = None  # as its row says; None: the hash of its name decides
    begins: bool = True           # False: it goes on with the text of the one before


def documents_of_text(name, path, alone, left_out):
    """Yield a text file as Documents. alone: whether it is the whole source. Then it becomes about
    twenty Documents or more, so that the last can be held out; else one, perhaps in pieces."""
    longest = PIECE
    if alone:
        longest = min(PIECE, os.path.getsize(path) // 20 + 5)
    with open(path, "rb") as file:
        if b"\0" in file.read(8192):  # no text in UTF-8 has a zero byte; git asks the same
            left_out["files with NUL bytes left out"].append(path)
            return
        file.seek(0)
        for number, text in enumerate(pieces(file, longest)):
            yield Document(name, text, begins=alone or number == 0)


def documents_of_rows(name, path, text_column, left_out):
    """Yield the rows of a file as Documents. Of n rows 10 + n / 100 may lack a text. Raises
    UserError."""
    columns = [text_column] if text_column else TEXT_COLUMNS
    without_text = 0
    for n_rows, (number, row) in enumerate(read_jsonl(path), 1):
        texts = [row[column] for column in columns if isinstance(row.get(column), str)]
        if not texts:
            without_text += 1
            fault = (f"{path}, line {number}: expected a string `{'` or `'.join(columns)}`, found "
                     f"{str(row)[:60]}")
            if without_text > 10 + n_rows / 100:
                raise UserError(f"{fault}; {without_text:,} of {n_rows:,} rows are like that; "
                                "--text_column=NAME names another field")
            left_out["rows without text skipped"].append(fault)
            continue
        view, split = row.get("view"), row.get("split")
        if view not in (None, "raw", "comp") or split not in list(SPLITS):
            raise UserError(f"{path}, line {number}: found `view` {view}, `split` {split}; "
                            f"expected raw or comp, and one of {', '.join(filter(None, SPLITS))}")
        text = texts[0].encode("utf-8", "surrogatepass")  # JSON can spell half a surrogate pair
        yield Document(str(row.get("name") or f"{name}:{number}"), text, view, SPLITS[split])


def documents(files, text_column, left_out):
    """Yield the Documents of files {name: path}. What can't be read is left out, but for a file
    that is all there is. Raises UserError.

    left_out: a defaultdict {what: [where, ..]}; it collects what is skipped, or read only in part.
    """
    alone = len(files) == 1
    for name, path in files.items():
        try:
            if has_rows(path):
                yield from documents_of_rows(name, path, text_column, left_out)
            else:
                yield from documents_of_text(name, path, alone, left_out)
        except (UserError, OSError) as error:  # it may also be gone since it was listed
            if alone:
                raise UserError(str(error)) from None
            left_out["files not read, or not to their end"].append(error)


# -----------------------------------------------------------------------------
# the split


def hash01(name):
    """A number in [0, 1) that depends on the string `name` alone."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2 ** 48


def hold_out(hashes, said, raw, source):
    """Which documents of a source are held out: bool (n,).

    hashes: the `hash01` of their names (n,). said: what their rows say (n,), 1 for held out, 0 for
    trained on, -1 for nothing. raw: bool (n,), which may be shown raw. Raises UserError where
    nothing is left to train on.

    The split follows the name alone: so it never leaks, and a new document moves no other one.
    """
    if len(hashes) < 2:
        raise UserError(f"--data={source}: {len(hashes)} documents with text; expected two or "
                        "more, to hold one out; --text_column=NAME names the field of the text")
    if (said == 0).all():
        print(f'data: all documents of {source} are marked "split": "train"; some are held out '
              "all the same")
        said = said - 1
    free = said < 0
    held_out = np.where(free, hashes < HELD_OUT_SHARE, said == 1)
    may_move = free & raw
    if free.all() and (hashes == hashes[0]).all():
        # all have one name, as the pieces of a single file: its end is held out, as in nanoGPT
        n_training = len(held_out) - max(1, len(held_out) // 10)
        held_out = np.arange(len(held_out)) >= n_training
    elif may_move.any() and not (held_out & raw).any():
        # of a few names it happens that none is held out: then the nearest one is moved
        held_out |= may_move & (hashes == hashes[may_move].min())
    if held_out.all():
        raise UserError(f"--data={source}: all documents are held out; expected one or more to "
                        'train on, "split": "train"')
    return held_out
