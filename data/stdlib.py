"""
stdlib: the source of the running interpreter's standard library, without its tests. Real code, about 12 MB, no network.

    python data/stdlib.py                      writes data/stdlib/corpus.jsonl
"""
import json
import os
import sysconfig
from pathlib import Path

SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib2to3", "ensurepip"}

if __name__ == "__main__":
    library, out = Path(sysconfig.get_path("stdlib")), Path(__file__).parent / "stdlib" / "corpus.jsonl"
    out.parent.mkdir(exist_ok=True)
    files = n_bytes = 0
    with open(f"{out}.tmp", "w") as f:
        for path in sorted(library.rglob("*.py")):
            name = path.relative_to(library)
            if SKIPPED.intersection(name.parts):
                continue
            try:
                text = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                print(f"left out {name}: not UTF-8")
                continue
            f.write(json.dumps({"name": name.as_posix(), "text": text}) + "\n")
            files, n_bytes = files + 1, n_bytes + len(text.encode())
    os.replace(f"{out}.tmp", out)
    print(f"wrote {os.path.relpath(out)}: {files:,} files, {n_bytes / 1e6:.1f} MB of text")
