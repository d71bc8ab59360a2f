"""
Writes the samples of a large corpus while its proxy is fitted: a process of its own, which
lib/store.py starts, and which reads from stdin what to do.

It shows how far it is, and says nothing else: what goes wrong here goes wrong again, and is said,
in the process that started it.
"""
import pickle
import signal
import sys
from pathlib import Path


def main():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this one
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from lib import store
    from lib.options import UserError

    store.CACHE, corpus, longest, shards, n_shards = pickle.load(sys.stdin.buffer)
    try:
        store.prepare_views(corpus, None, longest, shards, n_shards)
    except UserError:
        sys.exit(2)


if __name__ == "__main__":
    main()
