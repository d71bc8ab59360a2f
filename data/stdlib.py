"""
stdlib: the source of the running interpreter's standard library, without its tests. About 12 MB of
real code, and no network is needed.

    python data/stdlib.py                      writes data/stdlib/corpus.jsonl
"""
import json
import os
import sysconfig
from pathlib import Path

OUT = Path(__file__).parent / "stdlib" / "corpus.jsonl"

# folders that are left out
SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib2to3",
           "ensurepip"}


def modules(library):
    """Yield (name, text) of every module of the standard library in the folder `library`."""
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library)
        if SKIPPED.intersection(name.parts):
            continue
        try:
            yield name.as_posix(), path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            print(f"left out {name}: not UTF-8")


def main():
    library = Path(sysconfig.get_path("stdlib"))
    OUT.parent.mkdir(exist_ok=True)
    unfinished = f"{OUT}.{os.getpid()}.tmp"
    n_files = n_bytes = 0
    with open(unfinished, "w") as f:
        for name, text in modules(library):
            f.write(json.dumps({"name": name, "text": text}) + "\n")
            n_files += 1
            n_bytes += len(text.encode())
    os.replace(unfinished, OUT)
    print(f"wrote {os.path.relpath(OUT)}: {n_files:,} files, {n_bytes / 1e6:.1f} MB of text")


if __name__ == "__main__":
    main()
