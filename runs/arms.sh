#!/usr/bin/env bash
# README, "What to expect": four arms, the same number of training symbols, one seed. About 10 minutes each on two cores.
set -e
cd "$(dirname "$0")/.."
for proxy in none tokenizer neural gzip; do
    python train.py --proxy=$proxy "$@"
done
python eval.py out/none out/tokenizer out/neural out/gzip
