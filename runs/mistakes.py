"""
What a model gets wrong on tinycode: each completion beside the problem's own solution.

    python runs/mistakes.py out/none out/neural     runs that eval.py or a closing report has tested

A right answer may be written in another way than the solution, but few are, so the text tells what
went wrong: only the numbers, only the letters, or the operation of the first line or of a later
one. A line of the table is a run, and its shares are of all completions.
"""
import argparse
import contextlib
import json
import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KINDS = ["as the solution", "numbers", "letters", "first line", "later line"]


def mistake(completion, solution):
    """Which of KINDS a completion is. What follows the solution's lines does not count."""
    wanted = solution.splitlines()
    written = completion.splitlines()[:len(wanted)]
    if written == wanted:
        return "as the solution"
    for kind, pattern in (("numbers", "[0-9]+"), ("letters", "'[a-z]'")):
        if without(pattern, written) == without(pattern, wanted):
            return kind
    return "later line" if written[:1] == wanted[:1] else "first line"


def without(pattern, lines):
    return [re.sub(pattern, "#", line) for line in lines]


def completions(run):
    """[(task id, text)] of the largest file of completions that a run has, those of pass@k."""
    paths = list(Path(run, "completions").glob("*.jsonl"))
    if not paths:
        raise SystemExit(f"error: {run}: no completions in it; python eval.py {run} --task=pass")
    largest = max(paths, key=lambda path: path.stat().st_size)
    found = []
    for line in largest.read_text().splitlines():
        with contextlib.suppress(ValueError):  # an empty line, or half of one, of an interruption
            row = json.loads(line)
            found.append((row["task_id"], row["completion"]))
    return found


def shares(run, solutions):
    """{kind: share of the run's completions}"""
    kinds = Counter()
    for task_id, text in completions(run):
        if task_id not in solutions:
            raise SystemExit(f"error: {run} was tested on other problems, such as {task_id}; name "
                             "their file with --problems")
        kinds[mistake(text, solutions[task_id])] += 1
    return {kind: kinds[kind] / kinds.total() for kind in KINDS}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="folders of runs")
    parser.add_argument("--problems", type=Path, default=ROOT / "data/tinycode/problems.jsonl",
                        help="the problems that they were tested on [data/tinycode/problems.jsonl]")
    options = parser.parse_args()
    if not options.problems.exists():
        raise SystemExit(f"error: {options.problems} is not there; python data/tinycode.py")
    rows = [json.loads(line) for line in open(options.problems)]
    solutions = {row["task_id"]: row["canonical_solution"] for row in rows}
    width = max(map(len, options.runs))
    print(" " * width + "".join(f"{kind:>17}" for kind in KINDS))
    for run in options.runs:
        found = shares(run, solutions)
        print(f"{run:{width}}" + "".join(f"{found[kind]:17.3f}" for kind in KINDS))


if __name__ == "__main__":
    main()
