#!/usr/bin/env bash
# The tables of "The proxies" in runs/README.md, without the legend: one for each built-in corpus,
# and for two of them one of samples as short as nano's training has. About 6 minutes on two
# cores.
set -eo pipefail
cd "$(dirname "$0")/.."

table() {  # table CORPUS FILE FLAG..
    python proxies.py --report --data=$1 "${@:3}" |
        sed -E '/^(data|proxy|wrote)/d; /^bits.byte/,/^the symbols/d' | sed '/./,$!d' |
        tee runs/results/$2.tmp
    mv runs/results/$2.tmp runs/results/$2.txt  # a table that failed leaves the old one
}

for data in tinycode stdlib shakespeare; do
    table $data proxies-$data
done
for data in tinycode stdlib; do
    table $data proxies-$data-382 --sample_bytes=382
done
