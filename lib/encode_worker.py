"""
One encoding process: it turns parts of a corpus into a proxy's symbols, one after another.

lib/store.py starts it and speaks to it. It reads from stdin the pickled (search path, work), then
the numbers of parts, a line each. It answers each with a line: the bytes of text in the part, or
what the user did wrong. It ends where stdin ends, so it outlives the process that started it by no
more than a part.
"""
import os
import pickle
import signal
import sys


def main():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this one
    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a proxy prints is no answer

    messages = sys.stdin.buffer
    search_path, work = pickle.load(messages)
    sys.path[:] = search_path
    from lib.options import UserError  # only now: as everything here, it is found by that path
    encoding = pickle.loads(work)

    for line in messages:
        try:
            answer = encoding.encode(int(line))
        except UserError as error:
            answer = error
        try:
            os.write(answers, f"{answer}\n".encode())
        except OSError:  # there is no parent any more
            return


if __name__ == "__main__":
    main()
