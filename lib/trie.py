"""
The strings that a window of the neural proxy can hold, as a trie to walk down.

proxies.py lists them and gives them their codewords.
"""
from dataclasses import dataclass

import numpy as np


@dataclass
class Trie:
    """A string is a node, a byte longer than its parent. Node 0 is the empty string.

    Nodes are numbered by length: every shorter string comes first.
    """
    parent: np.ndarray    # (nodes,) int32
    byte: np.ndarray      # (nodes,) the last byte of each string
    codeword: np.ndarray  # (nodes,) what stands for it; in the fuzzy code for others too

    def __post_init__(self):
        edges = self.parent.astype(np.int64) * 256 + self.byte
        self.children = dict(zip(edges[1:].tolist(), range(1, len(edges))))

    def strings(self):
        """The string of each node, a list of bytes."""
        strings = [b""]
        for parent, byte in zip(self.parent[1:].tolist(), self.byte[1:].tolist()):
            strings.append(strings[parent] + bytes([byte]))
        return strings

    def walk(self, text):
        """The nodes at which the windows of a text end: down the trie, and again from its root.

        Every single byte has a node, so there is always a way to go on.
        """
        nodes = []
        node = 0
        for byte in text:
            child = self.children.get(node * 256 + byte)
            if child is None:  # the window is full
                nodes.append(node)
                child = self.children[byte]
            node = child
        if node:
            nodes.append(node)
        return nodes
