"""
What eval.py keeps in a run's folder: measured results, and the completions that were finished.

An evaluation that is called again reads them in place of measuring; an interrupted one goes on.
Called by eval.py.
"""
import functools
import hashlib
import json
import sys
from collections import defaultdict
from pathlib import Path

from lib.corpus import ROOT
from lib.options import UserError
from lib.store import write_file


def digest(value):
    """12 hex digits of the SHA-256 of a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


def code_hash(*paths):
    """12 hex digits that change when one of these source files does."""
    sources = [Path(path).read_text(encoding="utf-8") for path in paths]
    return digest(sources)


# results are measured again when one of these has changed
MEASURING = [ROOT / name for name in (
    "model.py", "proxies.py", "mix.py", "sample.py", "eval.py", "lib/bpe.py", "lib/byte_heads.py",
    "lib/corpus.py", "lib/cut.py", "lib/files.py", "lib/attention.py", "lib/rows.py", "lib/split.py",
    "lib/store.py", "lib/attention.py", "lib/trie.py", "lib/write_view.py", "lib/perturb.py",
    "lib/scoring.py", "lib/judge.py", "lib/sandbox.py")]


@functools.cache  # prints each text once
def warn_once(text):
    print(text, file=sys.stderr)


# -----------------------------------------------------------------------------
# measured results


def result_key(task, settings, content, stamp, code):
    """The name of a result in results.json: all that the result depends on, as 12 hex digits.

    settings: the options that the task reads, a dict; content: what it reads besides the model,
    not where that lies: problems, or ids of corpora; stamp: of the checkpoint; code: the
    `code_hash` of what measures.
    """
    return digest([task, settings, content, stamp, code])


class Results:
    """The results.json of a run. path: of the file; None to keep nothing."""

    def __init__(self, path):
        self.path = Path(path) if path else None

    def read(self):
        """{key: {"task", "settings", "problems", "results"}}. Raises UserError."""
        if self.path is None or not self.path.exists():
            return {}
        try:
            kept = json.loads(self.path.read_text(encoding="utf-8"))
            if not isinstance(kept, dict):
                raise ValueError("no object")
            return kept
        except ValueError as error:
            raise UserError(f"{self.path}: expected what eval.py wrote ({error}); "
                            "delete it and measure again") from None

    def get(self, key):
        """The results {name: number} that are kept under a `result_key`, None if there are none."""
        kept = self.read().get(key)
        return kept and kept["results"]

    def put(self, key, task, settings, problems_name, results):
        """Keep `results` for the next evaluation. Where they can't be written, it says so once."""
        if self.path is None:
            return
        kept = self.read()  # again: another evaluation of the run may have added to it
        kept[key] = {"task": task, "settings": settings, "problems": problems_name,
                     "results": results}
        try:
            write_file(self.path, json.dumps(kept, indent=1).encode())
        except UserError as error:
            warn_once(f"results not kept: {error}")


class Kept:
    """What a run's folder keeps of its evaluations: those of its checkpoint, by this `code`.

    results: its Results. completions: a path, with which the names of its files of completions
    begin. Of a model without a checkpoint nothing is kept, and `completions` is None.
    """

    def __init__(self, run, code):
        self.code = code
        self.stamp = None  # of the checkpoint
        self.completions = None
        self.results = Results(None)
        checkpoint = Path(run or "") / "ckpt.pt"
        if run and checkpoint.exists():
            self.stamp = checkpoint.stat().st_mtime_ns
            self.completions = Path(run) / "completions" / f"{self.stamp:x}-{code}"
            self.results = Results(Path(run) / "results.json")

    def key(self, task, settings, content):
        return result_key(task, settings, content, self.stamp, self.code)

    def forget_completions(self):
        if self.completions:
            for path in self.completions.parent.glob(f"{self.completions.name}-*"):
                path.unlink()


# -----------------------------------------------------------------------------
# finished completions


class Completions:
    """The finished completions of one call, n for each problem.

    path: of a file of JSON lines {task_id, completion}, the format that `eval.py --samples` scores;
    None to keep nothing. done: {task_id: list of n completions}; a problem with fewer is not in it.
    """

    def __init__(self, path, n):
        self.path = Path(path) if path else None
        self.n = n
        self.done = self.read()

    def read(self):
        """What `done` is at first: the problems in the file that have all n completions."""
        found = defaultdict(list)
        if self.path and self.path.exists():
            for line in self.path.read_text(encoding="utf-8").split("\n"):
                try:
                    row = json.loads(line)
                except ValueError:  # an empty line, or half of one: the writer was interrupted
                    continue
                found[row["task_id"]].append(row["completion"])
        done = {}
        for task_id, completions in found.items():
            if len(completions) >= self.n:
                # more than n where some were written before an interruption, and all n after it
                done[task_id] = completions[-self.n:]
        return done

    def add(self, task_id, completions):
        """Add a problem's n completions (strings). If they can't be written, it says so once."""
        self.done[task_id] = completions
        if self.path is None:
            return
        rows = [{"task_id": task_id, "completion": completion} for completion in completions]
        # The newline comes first, so that half a line from an interruption spoils no other.
        lines = "".join("\n" + json.dumps(row) for row in rows)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(lines)
        except OSError as error:
            warn_once(f"completions not kept: cannot write {self.path}: {error.strerror}")
