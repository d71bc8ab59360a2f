"""
Trains byte-pair encoding; tiktoken only encodes. proxies.py calls `train_bpe` for its tokenizer.
"""
import heapq
import re
from collections import Counter, defaultdict

from tqdm import tqdm

# words with the space before them, digits by threes, runs of punctuation, and runs of white space,
# which leave their last space to the word that follows
PATTERN = r" ?[^\W\d_]+| ?\d{1,3}| ?(?:[^\w\s]|_)+|\s+(?!\S)|\s+"


def neighbours(word):
    """The pairs of symbols that stand side by side in a word, as strings of two."""
    return map("".join, zip(word, word[1:]))


def train_bpe(texts, n_symbols):
    """Byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909): {bytes: rank}.

    The 256 bytes come first, then the merges: each time the pair of symbols that occurs most often,
    until there are n_symbols or no pair occurs twice.
    """
    occurrences = Counter()
    for text in texts:
        occurrences.update(re.findall(PATTERN, text.decode("utf-8", "ignore")))
    # A word is a string here, with character number i for symbol i; so str.replace merges. One that
    # occurs often is merged once.
    words = [word.encode().decode("latin-1") for word in occurrences]
    times = list(occurrences.values())

    pair_count = Counter()
    words_with = defaultdict(set)  # pair: the indices of the words that it occurs in, or did
    for i, word in enumerate(words):
        for pair in neighbours(word):
            pair_count[pair] += times[i]
            words_with[pair].add(i)
    # finds the most frequent pair without a look at all of them
    heap = [(-count, pair) for pair, count in pair_count.items()]
    heapq.heapify(heap)

    symbols = [bytes([byte]) for byte in range(256)]
    progress = tqdm(total=n_symbols - 256, desc="BPE merges", leave=False, disable=None)
    while heap and len(symbols) < n_symbols:
        negative_count, pair = heapq.heappop(heap)
        if -negative_count != pair_count[pair]:
            continue  # the count has changed since, and was pushed anew
        if pair_count[pair] < 2:
            break
        new = chr(len(symbols))
        first, second = map(ord, pair)
        symbols.append(symbols[first] + symbols[second])
        changed = set()                  # pairs, whose counts have to be pushed anew
        for i in words_with.pop(pair):   # no other word changes
            merged = words[i].replace(pair, new)
            for old_pair in neighbours(words[i]):
                pair_count[old_pair] -= times[i]
                changed.add(old_pair)
            for new_pair in neighbours(merged):
                pair_count[new_pair] += times[i]
                words_with[new_pair].add(i)
                changed.add(new_pair)
            words[i] = merged
        for pair in changed:
            if pair_count[pair] > 0:
                heapq.heappush(heap, (-pair_count[pair], pair))
        progress.update()
    progress.close()
    return {symbol: rank for rank, symbol in enumerate(symbols)}
