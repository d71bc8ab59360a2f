#!/usr/bin/env bash
# README, "The proxies": the proxy table of the three built-in corpora. About 15 minutes on two cores, 3 if all are fitted.
set -e
cd "$(dirname "$0")/.."
for data in tinycode stdlib shakespeare; do
    python proxies.py --report --data=$data | grep -v '^proxy:\|^wrote' | tee runs/results/proxies-$data.txt
done
