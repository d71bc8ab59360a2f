#!/usr/bin/env bash
# README, "The proxies": the proxy table of both built-in corpora. About 5 minutes on two cores.
set -e
cd "$(dirname "$0")/.."
python proxies.py --report --data=stdlib
python proxies.py --report --data=tinycode
