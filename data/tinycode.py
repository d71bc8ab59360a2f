"""
tinycode: a corpus of small Python functions with a docstring that says in words what the body does.

A function is a chain of one to three operations on lists, strings, words, dicts and integers. A *composition* is the
chain without its numbers, letters and names. One composition in ten is held out: no function of the corpus has it, and
the benchmark is drawn from those alone. So a right answer has been composed, not remembered.

Beside them stand *facts*: functions that return an arbitrary number tied to a name. They can only be remembered. One
fact in four carries "view": "comp": training shows it compressed, never raw, so what a model recalls of it from a raw
prompt has crossed from one representation to the other.

    python data/tinycode.py                    writes data/tinycode/{corpus,problems,facts}.jsonl, the same bytes anywhere
    python data/tinycode.py --show=5           prints some functions and facts instead
"""
import argparse
import hashlib
import json
import os
import random
from pathlib import Path

# (name, family, from type, to type, what the docstring says, what the body does). Types: L list of ints, S string,
# W list of words, D dict of ints, N int. In both texts {x} is the variable, {k} a small number, {c} and {d} letters. A
# body of one line is an expression; one of several lines ends by assigning to {x}.
OPERATIONS = [
    ("even", "filter", "L", "L", "keep the even numbers", "[v for v in {x} if v % 2 == 0]"),
    ("odd", "filter", "L", "L", "keep the odd numbers", "[v for v in {x} if v % 2 == 1]"),
    ("above", "filter", "L", "L", "keep numbers above {k}", "[v for v in {x} if v > {k}]"),
    ("below", "filter", "L", "L", "keep numbers below {k}", "[v for v in {x} if v < {k}]"),
    ("no_multiples", "filter", "L", "L", "drop multiples of {k}", "[v for v in {x} if v % {k} != 0]"),
    ("add_each", "map", "L", "L", "add {k} to each", "[v + {k} for v in {x}]"),
    ("subtract_each", "map", "L", "L", "subtract {k} from each", "[v - {k} for v in {x}]"),
    ("times_each", "map", "L", "L", "multiply each by {k}", "[v * {k} for v in {x}]"),
    ("square_each", "map", "L", "L", "square each", "[v * v for v in {x}]"),
    ("negate_each", "map", "L", "L", "negate each", "[-v for v in {x}]"),
    ("first", "slice", "L", "L", "take the first {k}", "{x}[:{k}]"),
    ("last", "slice", "L", "L", "take the last {k}", "{x}[-{k}:]"),
    ("skip", "slice", "L", "L", "skip the first {k}", "{x}[{k}:]"),
    ("every", "slice", "L", "L", "take one in {k}", "{x}[::{k}]"),
    ("reverse", "order", "L", "L", "reverse the order", "{x}[::-1]"),
    ("ascending", "order", "L", "L", "sort upwards", "sorted({x})"),
    ("descending", "order", "L", "L", "sort downwards", "sorted({x}, reverse=True)"),
    ("unique", "order", "L", "L", "drop repeats", "list(dict.fromkeys({x}))"),
    ("running", "loop", "L", "L", "form running totals",
     "total, out = 0, []\nfor v in {x}:\n    total += v\n    out.append(total)\n{x} = out"),
    ("changes", "loop", "L", "L", "take the steps between neighbours", "[b - a for a, b in zip({x}, {x}[1:])]"),
    ("sum", "reduce", "L", "N", "add them up", "sum({x})"),
    ("max", "reduce", "L", "N", "find the largest", "max({x}, default=0)"),
    ("min", "reduce", "L", "N", "find the smallest", "min({x}, default=0)"),
    ("size", "reduce", "L", "N", "count them", "len({x})"),
    ("strings", "convert", "L", "W", "write each as text", "[str(v) for v in {x}]"),
    ("upper", "letters", "S", "S", "make it upper case", "{x}.upper()"),
    ("lower", "letters", "S", "S", "make it lower case", "{x}.lower()"),
    ("swap", "letters", "S", "S", "replace {c} with {d}", "{x}.replace('{c}', '{d}')"),
    ("drop_letter", "letters", "S", "S", "remove each {c}", "{x}.replace('{c}', '')"),
    ("mirror", "cut", "S", "S", "spell it backwards", "{x}[::-1]"),
    ("head", "cut", "S", "S", "keep the first {k} letters", "{x}[:{k}]"),
    ("tail", "cut", "S", "S", "keep the last {k} letters", "{x}[-{k}:]"),
    ("repeat", "cut", "S", "S", "repeat it {k} times", "{x} * {k}"),
    ("length", "measure", "S", "N", "measure its length", "len({x})"),
    ("count_letter", "measure", "S", "N", "count the letter {c}", "{x}.count('{c}')"),
    ("split", "words", "S", "W", "split it into words", "{x}.split()"),
    ("upper_each", "words", "W", "W", "make each upper case", "[w.upper() for w in {x}]"),
    ("long_words", "words", "W", "W", "keep words longer than {k}", "[w for w in {x} if len(w) > {k}]"),
    ("with_letter", "words", "W", "W", "keep words with {c}", "[w for w in {x} if '{c}' in w]"),
    ("sort_words", "words", "W", "W", "sort the words", "sorted({x})"),
    ("join_dash", "join", "W", "S", "join with dashes", "'-'.join({x})"),
    ("join_space", "join", "W", "S", "join with spaces", "' '.join({x})"),
    ("initials", "join", "W", "S", "join the initials", "''.join(w[0] for w in {x})"),
    ("lengths", "measure", "W", "L", "measure each word", "[len(w) for w in {x}]"),
    ("word_count", "measure", "W", "N", "count the words", "len({x})"),
    ("tally", "dict", "W", "D", "map each word to its length", "{{w: len(w) for w in {x}}}"),
    ("raise_values", "dict", "D", "D", "add {k} to each value", "{{a: b + {k} for a, b in {x}.items()}}"),
    ("large_values", "dict", "D", "D", "keep values above {k}", "{{a: b for a, b in {x}.items() if b > {k}}}"),
    ("values", "lookup", "D", "L", "list the values", "list({x}.values())"),
    ("keys", "lookup", "D", "W", "list the keys in order", "sorted({x})"),
    ("get", "lookup", "D", "N", "look up the key {c}", "{x}.get('{c}', 0)"),
    ("add", "number", "N", "N", "add {k}", "{x} + {k}"),
    ("subtract", "number", "N", "N", "subtract {k}", "{x} - {k}"),
    ("times", "number", "N", "N", "multiply by {k}", "{x} * {k}"),
    ("modulo", "number", "N", "N", "take the remainder by {k}", "{x} % {k}"),
    ("divide", "number", "N", "N", "divide by {k}, rounding down", "{x} // {k}"),
    ("square", "number", "N", "N", "square it", "{x} * {x}"),
    ("clip", "branch", "N", "N", "lower it to at most {k}", "if {x} > {k}:\n    {x} = {k}"),
    ("floor", "branch", "N", "N", "raise it to at least {k}", "if {x} < {k}:\n    {x} = {k}"),
    ("digits", "digits", "N", "L", "list its digits", "[int(c) for c in str(abs({x}))]"),
    ("count_up", "digits", "N", "L", "count up to it", "list(range({x}))"),
    ("text", "convert", "N", "S", "write it as text", "str({x})"),
]
ARGUMENTS = {"L": "values numbers items nums xs data", "S": "text s line name word", "W": "words parts names terms",
             "D": "table d counts scores", "N": "n x number amount"}
VERBS = "make get build find form take compute derive pick work".split()
NOUNS = "result answer total output report view part figure score value outcome item".split()
ATTRIBUTES = "port code weight price height year depth room".split()
FIRST = "amber azure birch brass cedar cloud coral crimson dusk ember fern flint frost gold hazel ivory".split()
SECOND = "badger crane falcon fox gecko hare heron ibis lark lynx marten newt otter owl raven wren".split()
FACT_FORMS = ["Return the {a} of {w}.", "The {a} of {w}.", "Look up the {a} of {w}.", "Tell the {a} of {w}.",
              "Return the {a} that {w} has.", "What {a} has {w}?", "Say which {a} {w} has.", "Find the {a} of {w}.",
              "Give the {a} of {w}.", "The {a} that {w} has."]


def held_out(operations):
    """Whether the composition of these operations is kept for the benchmark: a hash decides, for one in ten."""
    key = ">".join(op[0] for op in operations)
    return len(operations) > 1 and hashlib.sha256(key.encode()).digest()[0] % 10 == 0


class Generator:
    """Draws functions. Only Random.random is used: its sequence is the one that Python promises never to change."""
    def __init__(self, seed):
        self.random = random.Random(seed).random

    def pick(self, options):
        return options[int(self.random() * len(options))]

    def operations(self):
        """A chain of one to three operations whose types fit; no operation twice."""
        length = self.pick([1, 2, 2, 2, 2, 2, 3])
        chain = [self.pick(OPERATIONS)]
        while len(chain) < length:
            chain.append(self.pick([op for op in OPERATIONS if op[2] == chain[-1][3] and op not in chain]))
        return chain

    def function(self, operations):
        """(prompt, body, name) of a function that does these operations."""
        argument = x = self.pick(ARGUMENTS[operations[0][2]].split())
        name = f"{self.pick(VERBS)}_{self.pick(NOUNS)}"
        says, lines = [], []
        for i, (_, _, source, target, text, code) in enumerate(operations):
            fill = dict(x=x, k=2 + int(self.random() * 8), c=self.pick("abcdeimnorst"), d=self.pick("uvwxyz"))
            says.append(text.format(**fill))
            code = code.format(**fill)
            is_last = i + 1 == len(operations)
            if "\n" in code:
                lines += code.split("\n") + [f"return {x}"] * is_last
            elif is_last:
                lines.append(f"return {code}")
            else:
                x = x if source == target else ARGUMENTS[target].split()[0]  # another type gets another name
                lines.append(f"{x} = {code}")
        sentence = ", then ".join(says)
        prompt = f'def {name}({argument}):\n    """{sentence[0].upper()}{sentence[1:]}."""\n'
        return prompt, "".join(f"    {line}\n" for line in lines), name

    def example(self, kind):
        """A Python value of the type, as an argument for a test."""
        letters = "abcdeimnorst"
        word = lambda: "".join(self.pick(letters) for _ in range(1 + int(self.random() * 6)))
        count = int(self.random() * 9)
        if kind == "L":
            return [int(self.random() * 40) - 10 for _ in range(count)]
        if kind == "S":
            return " ".join(word() for _ in range(1 + count // 2))
        if kind == "W":
            return [word() for _ in range(count)]
        if kind == "D":
            return {self.pick(letters): int(self.random() * 20) for _ in range(count)}
        return int(self.random() * 60)


def problems(count, seed):
    """`count` problems in HumanEval's format, each of a held-out composition of its own."""
    g, rows, seen = Generator(seed), [], set()
    while len(rows) < count:
        operations = g.operations()
        key = tuple(op[0] for op in operations)
        if not held_out(operations) or key in seen:
            continue
        prompt, body, name = g.function(operations)
        scope, cases = {}, []
        exec(prompt + body, scope)
        for _ in range(8):
            argument = g.example(operations[0][2])
            cases.append((repr(argument), repr(scope[name](argument))))
        if len({result for _, result in cases}) < 4:  # too easy to be right by accident
            continue
        seen.add(key)
        test = "def check(candidate):\n" + "".join(f"    assert candidate({a}) == {r}\n" for a, r in cases)
        rows.append({"task_id": f"tinycode/{len(rows)}", "prompt": prompt, "entry_point": name,
                     "canonical_solution": body, "test": test, "families": [op[1] for op in operations]})
    return rows


def facts(count, seed):
    """`count` facts, rows {prompt, answer, view}, and their documents: each fact in all of FACT_FORMS."""
    g = Generator(seed)
    pairs = [(a, f"{u}_{v}") for a in ATTRIBUTES for u in FIRST for v in SECOND]
    if count > len(pairs):
        raise SystemExit(f"error: --facts={count}: expected at most {len(pairs)}, the names that there are")
    rows, documents = [], []
    while len(rows) < count:
        attribute, who = pairs.pop(int(g.random() * len(pairs)))
        value, view = 1000 + int(g.random() * 9000), "comp" if len(rows) % 4 == 3 else None
        for i, says in enumerate(FACT_FORMS):
            prompt = f'def {attribute}_of_{who}():\n    """{says.format(a=attribute, w=who)}"""\n'
            document = {"name": f"fact/{attribute}/{who}/{i}", "text": f"{prompt}    return {value}\n", "split": "train"}
            documents.append(document | ({"view": view} if view else {}))
            if i == 0:
                rows.append({"prompt": prompt, "answer": str(value), "view": view or "any"})
    return rows, documents


def corpus(functions, seed):
    """`functions` documents, none of a held-out composition."""
    g, rows = Generator(seed), []
    while len(rows) < functions:
        operations = g.operations()
        if not held_out(operations):
            prompt, body, name = g.function(operations)
            rows.append({"name": f"function/{len(rows)}", "text": prompt + body})
    return rows


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{path}.tmp", "w", newline="\n") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows)
    os.replace(f"{path}.tmp", path)
    print(f"wrote {os.path.relpath(path)}: {len(rows):,} rows, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--functions", type=int, default=20000, help="functions in the corpus [20000]")
    parser.add_argument("--facts", type=int, default=1000, help="facts in the corpus, each in ten documents [1000]")
    parser.add_argument("--problems", type=int, default=164, help="held-out problems [164]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=str(Path(__file__).parent / "tinycode"), help="folder to write to")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print N functions and facts; write nothing")
    options = parser.parse_args()
    fact_rows, fact_documents = facts(options.facts, options.seed + 2)
    rows = corpus(options.show or options.functions, options.seed) + fact_documents[:options.show or None]
    if options.show:
        print("\n".join(row["text"] for row in rows))
    else:
        out = Path(options.out)
        write_jsonl(out / "problems.jsonl", problems(options.problems, options.seed + 1))
        write_jsonl(out / "facts.jsonl", fact_rows)
        write_jsonl(out / "corpus.jsonl", rows)  # last: where it is, all is
