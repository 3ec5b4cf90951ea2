#!/usr/bin/env bash
# bash run.sh                          demo: SimpleNet on real solar cells, on this machine's CPU or GPU
# bash run.sh /path/to/mvtec [option]  the paper's recipe on all MVTec AD classes; options go to the command they belong to,
#                                      and --recipe stable takes the place of the paper's
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup requirements.txt

if [ $# -eq 0 ]; then
  exec "$python" "$here/main.py" --log_project elpv --log_group demo --run_name simplenet --precision fp32 \
    net -b efficientnet_lite0 -le blocks.2 -le blocks.4 --pretrain_embed_dimension 256 --target_embed_dimension 256 \
    --meta_epochs 2 --gan_epochs 5 --auto_noise 0.5 --dsc_lr 0.0001 --dsc_hidden 512 --dsc_margin .5 --pre_proj 1 \
    dataset --batch_size 16 --resize 160 --imagesize 160 elpv
fi

mvtec=$1
shift
run=() net=() dataset=() owner=net
for word in "$@"; do
  case $word in
    --results_path | --gpu | --seed | --log_group | --log_project | --run_name | --precision | --feature_bank | \
      --eval_every | --threshold_quantile | --test | --on_error | --overwrite | \
      --save_segmentation_images | --grid | --jobs | --jobs_per_gpu | --ray) owner=run ;;
    -d | --subdatasets | --train_val_split | --batch_size | --num_workers | --resize | --imagesize | --rotate_degrees | \
      --translate | --scale | --brightness | --contrast | --saturation | --gray | --hflip | --vflip | --augment | \
      --resize_mode | --bit_depth | --max_pixels | --normal_dir | --normal_test_dir | --abnormal_dir | --mask_dir | \
      --n_train | --n_test | --dataset_seed | --label | --test_file | --split_seed) owner=dataset ;;
    --* | -b | -le) owner=net ;;
  esac
  case $owner in
    run) run+=("$word") ;;
    net) net+=("$word") ;;
    dataset) dataset+=("$word") ;;
  esac
done
paper=(--meta_epochs 40 --gan_epochs 4 --noise_std 0.015 --dsc_hidden 1024 --dsc_layers 2 --dsc_margin .5 --pre_proj 1)
if [[ " ${net[*]-} " =~ " --recipe"[\ =]"stable " ]]; then paper=(); fi
exec "$python" "$here/main.py" --log_project MVTecAD_Results --log_group simplenet_mvtec --run_name run ${run[@]+"${run[@]}"} \
  net -b wideresnet50 -le layer2 -le layer3 --pretrain_embed_dimension 1536 --target_embed_dimension 1536 \
  --patchsize 3 --embedding_size 256 ${paper[@]+"${paper[@]}"} ${net[@]+"${net[@]}"} \
  dataset --batch_size 8 --resize 329 --imagesize 288 ${dataset[@]+"${dataset[@]}"} mvtec "$mvtec"
