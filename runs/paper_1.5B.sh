#!/usr/bin/env bash
# The paper's 1.5B setting (arXiv 2602.04289): 20 layers of width 2048, contexts of 16,384 symbols,
# 2M symbols a step, 50k steps. r rises to 0.9 over the first 10k of them, while pairs are shown.
# (The paper's tokenizer has 96,640 symbols, and its model attends in linear time.) On eight GPUs of
# 80 GB it takes three days at 40 % of their peak, if samples have 500 symbols (python model.py
# --plan).
#
#     DATA=path/to/code.jsonl.gz runs/paper_1.5B.sh
#
# On two machines, NODE is 0 on the one that HEAD names and 1 on the other:
#
#     DATA=path/to/code.jsonl.gz NODES=2 NODE=0 HEAD=host0:29500 runs/paper_1.5B.sh
#
# PROXY=tokenizer and PROXY=none make the other two methods. More flags of train.py may follow.
set -e
cd "$(dirname "$0")/.."
torchrun --nproc_per_node="${GPUS:-8}" --nnodes="${NODES:-1}" --node_rank="${NODE:-0}" \
    --rdzv_backend=c10d --rdzv_id=nanoproxy --rdzv_endpoint="${HEAD:-localhost:29500}" \
    train.py --size=1.5B --paper --data="${DATA:-stdlib}" \
    --proxy="${PROXY:-neural}" --bits=16 --fuzzy --tokenizer=65536 \
    --mix=0.9 --mix_start=0.4 --mix_warmup=0.2 --pairs=warmup --mode=translation_random \
    --steps=50000 --batch_size=128 --micro_batch=1 --activation_checkpointing \
    --lr=9e-4 --lr_warmup=0.01 --weight_decay=0.1 --clip=1.0 --eval_every=1000 "$@"
