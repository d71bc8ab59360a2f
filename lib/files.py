"""
The files below a folder that hold text, each with its kind and a hash of its content.

lib/corpus.py makes sources of them. Hashes of a large corpus are remembered; lib/store.py keeps
them in the cache.
"""
import codecs
import contextlib
import hashlib
import os
import time
from dataclasses import dataclass

from tqdm import tqdm

from lib.options import UserError
from lib.rows import has_rows

# What a file is. One with NUL bytes is no text: an image, a program.
TEXT, UTF16, NUL_BYTES = "text", "UTF-16", "NUL bytes"

READ_BYTES = 2 ** 20            # a large file is read this much at a time
TRUST_FROM = 100_000_000        # bytes: smaller corpora are hashed each time, which takes no second
SAY_FROM = 1_000_000_000        # bytes: hashing more than that takes seconds, so a line says so
SETTLED = 2_000_000_000         # nanoseconds: see `hash_all`


@contextlib.contextmanager
def reading(path):
    """The file at `path`, open for reading bytes. Raises UserError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror})") from None


def printable(text):
    """A string or path as any terminal takes it: what is not UTF-8 in a name is spelled \\udcff."""
    return str(text).encode("utf-8", "backslashreplace").decode()


def progress_bar(what, n_bytes):
    """A bar on the terminal over so many bytes; none where stderr is a file or a pipe."""
    return tqdm(total=n_bytes, desc=what, unit="B", unit_scale=True, leave=False, disable=None)


# -----------------------------------------------------------------------------
# finding files


@dataclass
class TextFile:
    """A file of a source; perhaps one that turns out to hold no text."""
    path: str
    name: str       # from the source's folder on, with "/" between folders on every system
    size: int       # bytes
    modified: int   # nanoseconds since 1970
    kind: str = TEXT
    digest: str = ""  # SHA-256 of the content, in hex


# what tells others that a folder is a cache, ours as well (https://bford.info/cachedir)
CACHE_TAG = "CACHEDIR.TAG"
CACHE_SIGNATURE = b"Signature: 8a477f597d28d172789f06886806bc55"


def is_cache(folder):
    """Whether a folder says by its tag that it is a cache."""
    try:
        with open(os.path.join(folder, CACHE_TAG), "rb") as file:
            return file.read(len(CACHE_SIGNATURE)) == CACHE_SIGNATURE
    except OSError:
        return False


def names_in(folder, prefix=""):
    """Yield the names of all files below a folder, in order. Raises UserError.

    Left out are caches below it, names that begin with a dot, and what links to a folder, perhaps
    to one above.
    """
    # sorted, as the order on disk differs between machines and ids and batches depend on it
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"cannot read {folder} ({error.strerror})") from None
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            if is_cache(entry.path):
                continue
            yield from names_in(entry.path, f"{prefix}{entry.name}/")
        elif os.path.isfile(entry.path):
            yield prefix + entry.name


def find_files(root):
    """The TextFiles below the folder `root`, or `root` itself where it is a file: a list.

    Their kinds and hashes are not known yet. Raises UserError.
    """
    root = os.fspath(root)
    if os.path.isfile(root):
        paths = {os.path.basename(root): root}
    else:
        paths = {name: os.path.join(root, name) for name in names_in(root)}
    files = []
    for name, path in paths.items():
        status = os.stat(path)
        files.append(TextFile(path, name, status.st_size, status.st_mtime_ns))
    return files


# -----------------------------------------------------------------------------
# kinds and hashes


def kind_of(path, start):
    """TEXT, UTF16 or NUL_BYTES, from the first bytes of a file."""
    is_utf16 = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if is_utf16 and not start.startswith(codecs.BOM_UTF32_LE):
        return UTF16
    compressed = has_rows(path) and not path.endswith(".jsonl")
    # text has no zero bytes, and what is not text nearly always has one early (git's rule, too)
    if b"\0" in start and not compressed:
        return NUL_BYTES
    return TEXT


def look_at(file, progress):
    """Set the kind of a TextFile, also its hash where it holds text. Raises UserError."""
    digest = hashlib.sha256()
    with reading(file.path) as content:
        some = content.read(8192)
        file.kind = kind_of(file.path, some)
        if file.kind == NUL_BYTES:
            progress.update(file.size)
            return
        while some:
            digest.update(some)
            progress.update(len(some))
            some = content.read(READ_BYTES)
    file.digest = digest.hexdigest()


def hash_all(files, known):
    """Set the kinds and the hashes of TextFiles. Raises UserError for one that cannot be read.

    known: of large corpora, the files that were hashed before, {path: [size, modified, kind,
        digest]}. A file whose size and time are those is not read again; others are added.
    """
    large = sum(file.size for file in files) >= TRUST_FROM
    remembered = known if large else {}
    unknown = []
    for file in files:
        size, modified, kind, digest = remembered.get(os.path.abspath(file.path), [None] * 4)
        if (size, modified) == (file.size, file.modified):
            file.kind, file.digest = kind, digest
        else:
            unknown.append(file)

    n_bytes = sum(file.size for file in unknown)
    if n_bytes >= SAY_FROM:
        print(f"data: hashing {n_bytes / 1e9:.1f} GB in {len(unknown):,} files", flush=True)
    now = time.time_ns()
    with progress_bar("hashing", n_bytes) as progress:
        for file in unknown:
            look_at(file, progress)
            # One just written may be written again within the same tick of the disk's clock.
            if file.modified < now - SETTLED:
                entry = [file.size, file.modified, file.kind, file.digest]
                remembered[os.path.abspath(file.path)] = entry


# -----------------------------------------------------------------------------
# text


@contextlib.contextmanager
def reading_text(file):
    """A TextFile, open for reading the bytes of its text: UTF-16 as UTF-8, others as they are."""
    with reading(file.path) as content:
        if file.kind == UTF16:
            yield codecs.EncodedFile(content, "utf-8", "utf-16", errors="replace")
        else:
            yield content
