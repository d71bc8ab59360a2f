"""
The strings that a window of the neural proxy can hold, as a trie to walk down.

proxies.py lists the strings and gives them their codewords.
"""
from dataclasses import dataclass

import numpy as np

SIDE_BY_SIDE = 128  # from this many segments on it is faster to walk with all at once, in numpy


@dataclass
class Trie:
    """Each node is a string, one byte longer than its parent's. Node 0 is the empty string.

    Nodes are numbered by length: every shorter string comes first. Every single byte has a node, so
    there is always a way to go on.
    """
    parent: np.ndarray    # (nodes,) int32
    byte: np.ndarray      # (nodes,) the last byte of each string
    codeword: np.ndarray  # (nodes,) what stands for it; in the fuzzy code several may share one

    def __post_init__(self):
        nodes = np.arange(1, len(self.parent), dtype=np.int32)
        edges = self.parent[1:].astype(np.int64) * 256 + self.byte[1:]
        self.children = dict(zip(edges.tolist(), nodes.tolist()))
        # The dict is fast for one byte at a time; for numpy there is the same as a table,
        # table[first_entry[node] + byte], with 256 entries for each node that has children. Most
        # have none, and those share the last entries, which are 0
        parents = np.unique(self.parent[1:])
        self.first_entry = np.full(len(self.parent), 256 * len(parents), np.int32)
        self.first_entry[parents] = 256 * np.arange(len(parents))
        self.table = np.zeros(256 * (len(parents) + 1), np.int32)
        self.table[self.first_entry[self.parent[1:]] + self.byte[1:]] = nodes

    def strings(self):
        """The string of each node, a list of bytes."""
        strings = [b""]
        for parent, byte in zip(self.parent[1:].tolist(), self.byte[1:].tolist()):
            strings.append(strings[parent] + bytes([byte]))
        return strings

    def walk(self, text, node=0):
        """Go down the trie with each byte of `text`, and from its root again where no child has it.

        Yields (i, node) for each window: it ends before byte i of the text, at that node.
        """
        for i, byte in enumerate(text):
            child = self.children.get(node * 256 + byte)
            if child is None:  # the window is full
                yield i, node
                child = self.children[byte]
            node = child
        if text:
            yield len(text), node

    def walk_all(self, data, starts):
        """Walk down with all segments of `data`, uint8 (bytes,), side by side, a byte at a time.

        starts: where the segments begin; one ends where the next begins. Returns what `walk` yields
        for each of them, as an array (bytes,): at the last byte of a window its node, elsewhere 0.

        The longest segments come first, so those that are not at their end are always the first n:

            byte     0 1 2 3 4 5
            "return" r e t u r n     n = 3 for bytes 0 and 1, 2 for bytes 2 and 3, then 1
            "self"   s e l f
            "if"     i f

        Once n is small, each goes on alone.
        """
        node_at = np.zeros(len(data), np.int32)
        lengths = np.diff(starts, append=len(data))
        longest_first = np.argsort(-lengths, kind="stable")
        position = starts[longest_first]  # of each segment's next byte
        stop = position + lengths[longest_first]
        node = np.zeros(len(starts), np.int32)  # where each segment is in the trie

        # [t]: how many segments are longer than t bytes
        n_longer = len(lengths) - np.cumsum(np.bincount(lengths))
        together = n_longer[n_longer >= SIDE_BY_SIDE].tolist()
        for n in together:
            byte = data.take(position[:n])
            child = self.table.take(self.first_entry.take(node[:n]) + byte)
            full = np.flatnonzero(child == 0)        # there is no way on: the window ends
            node_at[position[full] - 1] = node[full]
            child[full] = self.table[byte[full]]     # from the root again, whose entries come first
            node[:n] = child
            position[:n] += 1
        n_left = int(n_longer[len(together)])
        node_at[stop[n_left:] - 1] = node[n_left:]  # the last windows of those that have ended

        # too few are left for numpy to be worth it
        for i in range(n_left):
            rest = data[position[i]:stop[i]].tobytes()
            for length, last_node in self.walk(rest, int(node[i])):
                node_at[position[i] + length - 1] = last_node
        return node_at


def take_ragged(values, first, count):
    """values[first[0]:first[0] + count[0]], then those of first[1] .., joined in one array.

        values = a b c d e, first = 3 0, count = 2 1  gives  d e a
    """
    starts = np.cumsum(count) - count  # where each stretch begins in the result
    index = np.arange(count.sum()) + np.repeat(first - starts, count)
    return values[index]
