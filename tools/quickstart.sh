#!/usr/bin/env bash
# Trains a plain, a noise-only and a KAP ResNet on Fashion-MNIST over two ranks, attacks all three with AutoAttack
# in two shards, and writes one page that compares them. May be interrupted and run again: what is done is kept.
#   tools/quickstart.sh [FOLDER]    where data and runs go; else the checkout
set -euo pipefail
checkout=$(cd "$(dirname "$0")/.." && pwd)
cd "${1:-$checkout}"
PATH=$checkout/.venv/bin:$PATH
export OMP_NUM_THREADS=1  # of what starts before a rank knows its share; silences torchrun's warning
started=$SECONDS

data=data/fashion_mnist
[ -e $data/train.beton.json ] || kapdist data write fashion-mnist $data/train.beton --split train >/dev/null
[ -e $data/test.beton.json ] || kapdist data write fashion-mnist $data/test.beton --split test >/dev/null

for name in plain noise kap; do
    torchrun --standalone --nproc-per-node 2 -m kapdist.cli train "$checkout/configs/fashion_mnist/$name.yaml"
    kapdist attack run runs/$name "$checkout/configs/fashion_mnist/attack.yaml" >/dev/null
done

echo "quickstart: $((SECONDS - started)) seconds"
kapdist report runs/plain runs/noise runs/kap --out runs/report
