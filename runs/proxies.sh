#!/usr/bin/env bash
# The tables of "The proxies" in runs/README.md, one for each built-in corpus, without the legend.
# About 15 minutes on two cores, 2 if all proxies are fitted.
set -e
cd "$(dirname "$0")/.."
for data in tinycode stdlib shakespeare; do
    python proxies.py --report --data=$data |
        sed '/^proxy:/d; /^wrote/d; /^of bare/,/^after/d' |
        tee runs/results/proxies-$data.txt
done
