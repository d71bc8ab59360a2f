"""
Which documents are held out: lib/corpus.py asks, for each source by itself.

The split is by document and follows the document's name alone. So no piece of a held-out document
is ever trained on, and a new document moves no other one that has a name of its own (not a number
in its file) to the other side of the split.
"""
import hashlib
from dataclasses import dataclass

HELD_OUT = 0.05  # share of the documents


def hash01(text):
    """A number in [0, 1) that depends on the string `text` alone."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2 ** 48


# -----------------------------------------------------------------------------
# documents


@dataclass
class Document:
    """One text of a corpus. It is trained on as a whole, or held out as a whole."""
    name: str           # documents of one name are on the same side of the split
    text: bytes
    view: str | None    # "raw" or "comp" where this is the only view that training may show
    split: str | None   # "train" or "val" where its row says so
    held_out: bool


def new_document(name, text, view=None, split=None):
    """A Document, held out as `split` ("train" or "val") says, or else by the hash of its name."""
    if split is None:
        held_out = hash01(name) < HELD_OUT
    else:
        held_out = split == "val"
    return Document(name, text, view, split, held_out)


# -----------------------------------------------------------------------------
# the split


class Sides:
    """What is on either side of the split, among the documents with text that are added.

    By the hash of their names it happens that of few documents none is held out, or all are; and
    rows may say so. Then one name is moved to the other side: the one nearest to it.
    """

    def __init__(self):
        self.n_documents = 0
        self.first_name = None
        self.several_names = False
        self.some_trained = False
        self.some_held_out = False
        self.some_held_out_raw = False  # held out, and may be shown raw
        # the best to move, each (rank, document); a low rank is better
        self.to_hold_out = None
        self.to_train = None

    def add(self, document):
        if not document.text:
            return
        self.n_documents += 1
        if self.first_name is None:
            self.first_name = document.name
        self.several_names = self.several_names or document.name != self.first_name
        if document.held_out:
            self.add_held_out(document)
        else:
            self.add_trained(document)

    def add_held_out(self, document):
        self.some_held_out = True
        if document.view != "comp":
            self.some_held_out_raw = True
        if document.split != "val":
            rank = -hash01(document.name)
            if self.to_train is None or rank < self.to_train[0]:
                self.to_train = rank, document

    def add_trained(self, document):
        self.some_trained = True
        # better one that may be shown raw, and then better not against its row's word
        rank = document.view == "comp", document.split == "train", hash01(document.name)
        if self.to_hold_out is None or rank < self.to_hold_out[0]:
            self.to_hold_out = rank, document

    @property
    def enough(self):
        """Is there something to train on, and something to hold out that may be shown raw?"""
        return self.some_trained and self.some_held_out_raw

    def document_to_move(self):
        """The Document whose name is to change sides; None where no change is of use."""
        if not self.some_trained:
            return self.to_train[1] if self.to_train else None
        if self.some_held_out_raw:
            return None
        document = self.to_hold_out[1]
        if document.view == "comp" and self.some_held_out:
            return None
        return document
