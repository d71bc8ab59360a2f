"""
From what --data names to documents: the files, the rows in them, the split, and where a text is
cut. lib/views.py makes samples of the documents.

The code of this file is in the key of each cached corpus. So after an edit, but of a comment or a
docstring, no sample of before is used.
"""
import ast
import codecs
import gzip
import hashlib
import importlib
import inspect
import io
import json
import math
import os
import subprocess
import sys
import textwrap
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lib.options import UserError, did_you_mean

ROOT = Path(__file__).resolve().parent.parent  # the project's folder
TINYCODE = ROOT / "data" / "tinycode"
# a script data/NAME.py makes a built-in corpus: when first asked for, it writes
# data/NAME/corpus.jsonl
BUILT_IN = {script.stem: script for script in sorted((ROOT / "data").glob("*.py"))}

TEXT_COLUMNS = ("text", "content")  # where a row has its text: the first of them that has one
OTHER_COLUMNS = ("name", "view", "split")
SPLITS = {None: None, "train": False} | dict.fromkeys(("val", "valid", "validation", "dev", "test"),
                                                      True)
HELD_OUT_SHARE = 0.05  # of the documents
PIECE = 2 ** 16        # bytes of a text file that are read at a time
BROKEN = (ValueError, OSError, EOFError, zlib.error, RuntimeError)  # what reading rows may raise
# by such a file, and what is in it, one knows a cache (https://bford.info/cachedir) and a run, which
# are never text of a corpus
OURS = {"CACHEDIR.TAG": b"Signature: 8a477f597d28d172789f06886806bc55",
        "config.json": b'"changed_since_commit"'}


def key(*values):
    """12 hex digits, a hash of values whose `repr` says all about them."""
    return hashlib.sha256(repr(values).encode("utf-8", "surrogatepass")).hexdigest()[:12]


def code_of(thing):
    """The syntax tree of a source file (a path), a class or a function, as text.

    Any edit changes it, but of a comment, of a docstring and of the layout.
    """
    if isinstance(thing, (str, Path)):
        source = Path(thing).read_text(encoding="utf-8")
    else:
        source = textwrap.dedent(inspect.getsource(thing))
    tree = ast.parse(source)
    for node in ast.walk(tree):
        may_have_one = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        if may_have_one and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.dump(tree)


def printable(text):
    """A string or path as any terminal takes it: what is not UTF-8 in a name is spelled \\udcff."""
    return str(text).encode("utf-8", "backslashreplace").decode()


def progress_bar(what, n_bytes):
    """A bar on the terminal over so many bytes; none where stderr is a file or a pipe."""
    return tqdm(total=n_bytes, desc=what, unit="B", unit_scale=True, leave=False, disable=None)


# -----------------------------------------------------------------------------
# what --data names


def parse_data(data):
    """([name of each source], [weight of each] or None), from --data: "a:0.7,b:0.3" or "a,b".

    Raises UserError.
    """
    if os.path.exists(data):  # a path is a path first, even one with a comma or a colon in it
        return [data], None
    names, weights = [], []
    for source in data.split(","):
        name, _, weight = source.rpartition(":")
        try:
            weights.append(float(weight))
            names.append(name)
        except ValueError:  # no weight; a colon belongs to the name, as in C:\code
            names.append(source)
    if not weights:
        return names, None
    positive = all(0 < weight < math.inf for weight in weights)
    if len(weights) < len(names) or not positive:
        raise UserError(f"--data={data}: expected a weight above 0 for every source, "
                        "as in a:0.7,b:0.3, or for none")
    return names, weights


def built_in_file(name):
    """The path of a built-in corpus, written first where it is not there, or older than its
    script. Raises UserError where the script fails."""
    script = BUILT_IN[name]
    path = script.with_suffix("") / "corpus.jsonl"
    if not path.exists() or path.stat().st_mtime < script.stat().st_mtime:
        if subprocess.run([sys.executable, script]).returncode:
            raise UserError(f"--data={name}: the corpus was not written; see the lines above")
    return path


def tinycode_folder(data):
    """Where the problems and facts of a corpus are that data/tinycode.py wrote: beside it. Else
    None."""
    if data == "tinycode":
        return TINYCODE
    path = Path(data)
    has_both = all((path.parent / name).exists() for name in ("problems.jsonl", "facts.jsonl"))
    return path.parent if path.name == "corpus.jsonl" and has_both else None


def tinycode_file(folder, name):
    """The path of problems.jsonl or facts.jsonl in a folder from `tinycode_folder`; the built-in
    one is written first, where it is not there yet."""
    if folder == TINYCODE:
        built_in_file("tinycode")
    return folder / name


# -----------------------------------------------------------------------------
# rows: JSON lines and parquet


def optional_module(name, path):
    """A module that only some files need. Raises UserError with the command that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"{path}: reading it needs a package, pip install pyarrow") from None


def open_lines(path):
    """The file at `path`, open for reading bytes; a .gz or .zst is decompressed."""
    name = str(path).lower()
    if name.endswith(".gz"):
        return gzip.open(path)
    if name.endswith(".zst"):
        # unlike zstandard's own reader, this one notices where a file is cut off
        arrow = optional_module("pyarrow", path)
        return io.BufferedReader(arrow.input_stream(str(path), compression="zstd"), 2 ** 20)
    return open(path, "rb")


def read_jsonl(path):
    """Yield (line number, dict) for each line of a .jsonl[.gz|.zst] file that is not blank.

    Raises UserError for a file that is not there, or is not made of JSON objects, one a line.
    """
    number = 0
    try:
        with open_lines(path) as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("not an object")
                yield number, row
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except BROKEN as error:
        raise UserError(f"{path}, near line {max(1, number)}: expected JSON lines "
                        f"({error})") from None


def read_parquet(path, text_columns):
    """Yield (row number, dict) for each row of a .parquet file: its text columns and OTHER_COLUMNS,
    or all columns where it has no such text. Raises UserError."""
    parquet = optional_module("pyarrow.parquet", path)
    number = 0
    try:
        with parquet.ParquetFile(path, buffer_size=2 ** 20) as file:
            names = file.schema_arrow.names
            if not set(text_columns).isdisjoint(names):
                names = [name for name in (*text_columns, *OTHER_COLUMNS) if name in names]
            for batch in file.iter_batches(64, columns=names):  # a row may be megabytes
                for number, row in enumerate(batch.to_pylist(), number + 1):
                    yield number, row
    except BROKEN as error:
        raise UserError(f"{path}, after row {number}: expected a parquet file "
                        f"({error})") from None


def read_log(path):
    """Yields (line, row) of a log. What is no whole line is left out: its writer was killed, or met
    a full disk."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield line, row


# -----------------------------------------------------------------------------
# files


class LeftOut:
    """What of a source is not read, or not as it is: how many of each kind, and the first."""

    def __init__(self):
        self.count = Counter()
        self.first = {}

    def add(self, kind, first, n=1):
        self.count[kind] += n
        self.first.setdefault(kind, first)

    def say(self):
        for kind, n in self.count.items():
            print(printable(f"data: {n:,} {kind}, the first: {self.first[kind]}"), flush=True)


def is_ours(folder):
    """Whether a folder is a cache or a run."""
    for name, mark in OURS.items():
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            with open(path, "rb") as file:
                if mark in file.read(2 ** 16):
                    return True
    return False


def find_files(source):
    """{name: path} of the files of a source, and what is left out: a LeftOut. Raises UserError.

    source: a name in BUILT_IN, a file, or a folder. Of a folder are left out caches and runs below
    it, names that begin with a dot, and what links to a folder, perhaps to one above. Names have
    "/" between folders on every system.
    """
    left_out = LeftOut()
    root = str(built_in_file(source)) if source in BUILT_IN else source
    if os.path.isfile(root):
        return {os.path.basename(root): root}, left_out
    if not os.path.isdir(root):
        raise UserError(f"--data={source}: no such file or folder, nor one of "
                        f"{', '.join(BUILT_IN)}{did_you_mean(source, BUILT_IN)}")

    def note(error):
        left_out.add("folders not read", error)

    files = {}
    for folder, subfolders, names in os.walk(root, onerror=note):
        if folder != root and is_ours(folder):
            subfolders.clear()
            continue
        # sorted, as the order on disk differs between machines, and batches depend on it
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            path = os.path.join(folder, name)
            if not name.startswith(".") and os.path.isfile(path):
                files[Path(os.path.relpath(path, root)).as_posix()] = path
    return files, left_out


def has_rows(path):
    """Whether a file has rows, by its name; a .json if its first line is a row with text."""
    stem, ending = os.path.splitext(path.lower())
    if ending == ".json":
        with open(path, "rb") as file:
            try:
                row = json.loads(file.readline(PIECE))
            except (ValueError, RecursionError):
                return False
        return isinstance(row, dict) and not row.keys().isdisjoint(TEXT_COLUMNS)
    if ending in (".gz", ".zst"):
        return stem.endswith((".jsonl", ".ndjson", ".json"))
    return ending in (".jsonl", ".ndjson", ".parquet")


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


def end_of_piece(text, longest):
    """Where the first piece of `text` (bytes) ends, at most `longest` bytes (5 or more).

    It ends after the last newline in reach; where there is none, between two UTF-8 characters. So
    with longest = 7 the pieces of b"ab\\ncd\\nefgh" are b"ab\\ncd\\n" and b"efgh".
    """
    if len(text) <= longest:
        return len(text)
    end = text.rfind(b"\n", 0, longest) + 1
    if end:
        return end
    # A byte 10xxxxxx continues a character. A character has at most 4 bytes, so in valid text one
    # begins 3 steps back or nearer; what is not UTF-8 may be cut anywhere.
    end = longest
    while end > longest - 4 and text[end] & 0b11000000 == 0b10000000:
        end -= 1
    return end


def pieces(file, longest):
    """Yield a binary file in pieces of at most `longest` bytes, by `end_of_piece`."""
    text = file.read(longest + 1)  # with the one byte more it is seen whether it goes on
    while text:
        end = end_of_piece(text, longest)
        yield text[:end]
        text = text[end:]
        text += file.read(longest + 1 - len(text))


def documents_of_text(name, path, alone, left_out):
    """Yield a text file as Documents. alone: is it all of its source? Then it is twenty or more,
    for the last ones to be held out; else a single one, perhaps in pieces."""
    longest = PIECE
    if alone:
        longest = min(PIECE, os.path.getsize(path) // 20 + 5)
    with open(path, "rb") as file:
        start = file.read(8192)
        file.seek(0)
        is_utf32 = start.startswith(codecs.BOM_UTF32_LE)
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and not is_utf32:
            left_out.add("UTF-16 files read as UTF-8", path)
            file = io.BytesIO(file.read().decode("utf-16", "replace").encode())
        elif b"\0" in start:  # no text has a zero byte; git asks the same
            left_out.add("files with NUL bytes left out", path)
            return
        for number, text in enumerate(pieces(file, longest)):
            yield Document(name, text, begins=alone or number == 0)


def text_of_row(row, columns):
    """The text in the first of `columns` that has one, as bytes; None where there is none."""
    for column in columns:
        text = row.get(column)
        if isinstance(text, str):
            # JSON can spell half a surrogate pair, which strict UTF-8 cannot
            return text.encode("utf-8", "surrogatepass")
        if isinstance(text, bytes):  # a column of a .parquet file may be of bytes
            return text
    return None


def found_in(row, columns):
    """What a row has in place of a text, for a message."""
    for column in columns:
        if column in row:
            value = row[column]
            return f"`{column}` with {type(value).__name__} {str(value)[:40]}"
    return f"the fields {', '.join(list(row)[:8]) or 'none'}"


def documents_of_rows(name, path, text_column, left_out):
    """Yield the rows of a file as Documents. Of a hundred one may lack a text. Raises UserError."""
    columns = [text_column] if text_column else TEXT_COLUMNS
    if path.lower().endswith(".parquet"):
        rows = read_parquet(path, columns)
    else:
        rows = read_jsonl(path)
    n_rows = n_without = 0
    for number, row in rows:
        place = f"{path}, line {number}"
        n_rows += 1
        text = text_of_row(row, columns)
        if text is None:
            n_without += 1
            if n_without == 1:
                wanted = " or ".join(f"`{column}`" for column in columns)
                first = f"{place}: expected a string {wanted}, found {found_in(row, columns)}"
            if n_without == n_rows == 1000:  # none of the others is waited for
                break
            continue
        view, split = row.get("view"), row.get("split")
        if view not in (None, "raw", "comp") or split not in SPLITS:
            raise UserError(f"{place}: found `view` {view}, `split` {split}; expected raw or comp, "
                            f"and one of {', '.join(filter(None, SPLITS))}")
        yield Document(str(row.get("name") or f"{name}:{number}"), text, view, SPLITS[split])
    if n_without > max(1, n_rows / 100) or n_without == n_rows > 0:
        raise UserError(f"{first}; {n_without:,} of {n_rows:,} rows are like that, 1 in 100 may "
                        "be; --text_column=NAME names another field")
    if n_without:
        left_out.add("rows without text skipped", first, n_without)


def documents(files, text_column, left_out):
    """Yield the Documents of files {name: path}. What can't be read is left out and counted, but
    for a file that is all there is. Raises UserError."""
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
            left_out.add("files not read, or not to their end", error)


# -----------------------------------------------------------------------------
# the split


def hash01(name):
    """A number in [0, 1) that depends on the string `name` alone."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2 ** 48


def hold_out(hashes, said, raw, source):
    """Which documents of a source are held out: bool (n,).

    hashes: the `hash01` of their names, float (n,). said: what their rows say, int8 (n,), 1 for
    held out, 0 for trained on, -1 for nothing. raw: bool (n,), which may be shown raw.
    Raises UserError where nothing is left to train on.

    The split follows the name alone: so it never leaks, and a new document moves no other one.
    """
    if len(hashes) < 2:
        raise UserError(f"--data={source}: {len(hashes)} documents with text; expected two or "
                        "more, to hold one out")
    if (said == 1).all():
        raise UserError(f'--data={source}: all documents are marked "split": "val"; expected one '
                        "or more to train on")
    if (said == 0).all():
        print(f'data: all documents of {printable(source)} are marked "split": "train"; some are '
              "held out all the same")
        said = said - 1
    free = said < 0
    held_out = np.where(free, hashes < HELD_OUT_SHARE, said == 1)
    # all have one name, as the pieces of a single file: its end is held out, as in nanoGPT
    if free.all() and (hashes == hashes[0]).all():
        held_out[:] = False
        held_out[-max(1, len(held_out) // 10):] = True
        return held_out
    # of a few names it happens that none is held out, or all are: then the nearest one is moved
    if not (held_out & raw).any() and (free & raw).any():
        lowest = hashes[free & raw].min()
        held_out |= free & raw & (hashes == lowest)
    if held_out.all():
        highest = hashes[free].max()
        held_out &= ~free | (hashes != highest)
    return held_out
