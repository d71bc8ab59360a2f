"""
The machinery of nanoproxy, which a reader of the lesson may skip.

This file runs before any other of the folder. It ends the program in one line where Python or a
package is too old, and so it is written in what old versions of Python can read.
"""
import os
import re
import sys

PYTHON = (3, 11)  # the oldest that will do
REQUIREMENTS = os.path.join(os.path.dirname(__file__), os.pardir, "requirements.txt")


def version_numbers(version):
    """The first two numbers of a version: "2.13.0+cpu" is (2, 13)."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def unmet_requirement():
    """One line that says what is missing or too old; None where nothing is."""
    if sys.version_info < PYTHON:
        needed, found = "%d.%d" % PYTHON, "%d.%d" % sys.version_info[:2]
        return f"nanoproxy needs Python {needed} or newer, this is Python {found}"
    from importlib import metadata  # not known to Python 3.7
    with open(REQUIREMENTS) as file:
        lines = file.read().splitlines()
    for line in lines:
        requirement = line.split("#")[0].strip()  # "torch>=2.13", say
        package, oldest = requirement.split(">=")
        try:
            found = metadata.version(package)
        except metadata.PackageNotFoundError:
            found = ""
        if version_numbers(found) < version_numbers(oldest):
            return (f"nanoproxy needs {package} {oldest} or newer, found {found or 'none'}; "
                    "python -m pip install -r requirements.txt")
    return None


problem = unmet_requirement()
if problem:
    print(f"error: {problem}", file=sys.stderr)
    sys.exit(2)
