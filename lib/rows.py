"""
Files of rows: .jsonl, also compressed as .gz or .zst, and .parquet. A row is a dict.

lib/corpus.py reads documents from them; lib/scoring.py, lib/tables.py and eval.py read other JSON
lines.
"""
import contextlib
import gzip
import importlib
import json
import zlib

from lib.options import UserError

ROW_ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
COMPRESSION = 4         # about how much longer a text is than its .gz or .zst, for shares and bars
PARQUET_ROWS = 64       # decoded at a time: a row may be megabytes
READ_BYTES = 2 ** 20       # of a compressed file, at a time
LONGEST_WINDOW = 2 ** 31  # bytes that `zstd --long=31` looks back


def has_rows(path):
    return path.endswith(ROW_ENDINGS)


def optional_module(name, path):
    """A module that only some files need. Raises UserError with the command that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise UserError(f"{path} can be read with {package}, which is not installed: "
                        f"pip install {package}") from None


# -----------------------------------------------------------------------------
# .jsonl


def zst_lines(path):
    """Yield the lines of a .zst file, as bytes. Raises EOFError where the file is cut off."""
    zstandard = optional_module("zstandard", path)
    decompressor = zstandard.ZstdDecompressor(max_window_size=LONGEST_WINDOW)
    frame = decompressor.decompressobj()
    line = b""  # as much of it as is known
    with open(path, "rb") as file:
        data = file.read(READ_BYTES)
        while data:
            # compressing on several cores, or `cat a.zst b.zst`, makes more than one frame
            if frame.eof:
                frame = decompressor.decompressobj()
            *whole_lines, line = (line + frame.decompress(data)).split(b"\n")
            yield from whole_lines
            data = frame.unused_data or file.read(READ_BYTES)
    # the package's own reader takes half a file for a whole one
    if not frame.eof:
        raise EOFError("the file is cut off")
    yield line


def open_lines(path):
    """The lines of the .jsonl file at `path`, a string, whatever it is compressed with."""
    if path.endswith(".zst"):
        return contextlib.closing(zst_lines(path))
    open_text = gzip.open if path.endswith(".gz") else open
    return open_text(path, "rt", encoding="utf-8-sig")  # some editors write a byte-order mark


def decoding_errors(path):
    """What reading the .jsonl file at `path` raises where its content is not what it should be."""
    errors = (ValueError, OSError, EOFError, zlib.error, RecursionError)
    if path.endswith(".zst"):
        return (*errors, optional_module("zstandard", path).ZstdError)
    return errors


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


def read_jsonl(path):
    """Yield (line number, dict) for each line of a .jsonl[.gz|.zst] file that is not blank.

    Raises UserError for a file that is not there, or is not made of JSON objects, one a line.
    """
    # line by line, so that a file may be larger than memory
    path = str(path)
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
    except decoding_errors(path) as error:
        # "near": what cannot be decoded is met while the line after `number` is being read
        near = max(1, number)
        raise UserError(f"{path}, near line {near}: expected JSON lines ({error})") from None


# -----------------------------------------------------------------------------
# .parquet


def open_parquet(path):
    """The .parquet file at `path`, of which only what is asked for is read. Raises UserError."""
    parquet = optional_module("pyarrow.parquet", path)
    try:
        return parquet.ParquetFile(path, buffer_size=READ_BYTES)
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: expected a parquet file ({error})") from None


def text_column_of(file, path, text_columns):
    """The first of `text_columns` that an open .parquet file has. Raises UserError for none."""
    present = file.schema_arrow.names
    for name in text_columns:
        if name in present:
            return name
    raise UserError(f"{path}: expected a column {' or '.join(text_columns)}, found "
                    f"{', '.join(present)}; --text_column=NAME names another")


def read_parquet(path, text_columns, other_columns):
    """Yield (row number, dict) for each row of a .parquet file. Raises UserError."""
    with open_parquet(path) as file:
        present = file.schema_arrow.names
        columns = [text_column_of(file, path, text_columns)]
        columns += [name for name in other_columns if name in present]
        number = 0
        try:
            for batch in file.iter_batches(PARQUET_ROWS, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
        except (ValueError, OSError) as error:
            raise UserError(f"{path}, after row {number}: cannot be read ({error})") from None


# -----------------------------------------------------------------------------
# either


def read_rows(path, text_columns, other_columns):
    """Yield (number, dict) for each row of a file; `number` counts lines or rows from 1.

    text_columns: where the text may be, the first that is there. other_columns: what else is asked
        for; a .jsonl row has all its columns anyway. Raises UserError.
    """
    if path.endswith(".parquet"):
        return read_parquet(path, text_columns, other_columns)
    return read_jsonl(path)


def text_size(path, size, text_columns):
    """About how many bytes of text are in the rows of a file of `size` bytes. Raises UserError."""
    if path.endswith((".gz", ".zst")):
        return COMPRESSION * size
    if not path.endswith(".parquet"):
        return size
    with open_parquet(path) as file:
        name = text_column_of(file, path, text_columns)
        n_bytes = 0
        for group in range(file.metadata.num_row_groups):
            columns = file.metadata.row_group(group)
            for number in range(columns.num_columns):
                column = columns.column(number)
                if column.path_in_schema == name:
                    n_bytes += column.total_uncompressed_size
        return n_bytes
