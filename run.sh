#!/usr/bin/env bash
# bash run.sh                          demo: SimpleNet on real solar cells, on this machine's CPU or GPU
# bash run.sh /path/to/mvtec [option]  the paper's recipe on all MVTec AD classes; --help says more
# bash run.sh all [/path/to/mvtec]     every detector in one comparison; without a path small ones on the solar cells
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup requirements.txt

if [ $# -eq 0 ]; then
  exec "$python" "$here/main.py" --log_project elpv --log_group demo --run_name simplenet --precision fp32 \
    net -b efficientnet_lite0 -le blocks.2 -le blocks.4 --pretrain_embed_dimension 256 --target_embed_dimension 256 \
    --meta_epochs 2 --gan_epochs 5 --auto_noise 0.5 --dsc_lr 0.0001 --dsc_hidden 512 --dsc_margin .5 --pre_proj 1 \
    dataset --batch_size 16 --resize 160 --imagesize 160 elpv
fi
PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" exec "$python" -m cli.script "$@"
