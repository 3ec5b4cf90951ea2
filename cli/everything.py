"""Every detector in one comparison: what bash run.sh all gives each of them, a line each.

A line has a detector's options as its paper sets them, where they are not the defaults. Behind "dataset" stand those of
data that are not its own defaults. What is no detector's name is that of a second line of one, which begins with its
command. One without a line does not take part: efficientad, which needs a teacher first.
"""

WIDE = "-b wideresnet50"
TWO, THREE = "-le layer2 -le layer3", "-le layer1 -le layer2 -le layer3"
NET = f"{WIDE} {TWO} --pretrain_embed_dimension 1536 --target_embed_dimension 1536"
PAPER = "dataset --batch_size 8 --resize 329 --imagesize 288"
MVTEC = {  # of MVTec AD, and what has its layout
    "net": f"{NET} --meta_epochs 40 --gan_epochs 4 --noise_std 0.015 --dsc_hidden 1024 --dsc_margin .5 --pre_proj 1 "
    f"{PAPER}",
    "net_memory": f"net {WIDE} {TWO} --recipe memory {PAPER}",
    "patchcore": f"{WIDE} {TWO}",
    "reconpatch": f"{WIDE} {TWO}",
    "gaussian": f"{WIDE} {THREE} --dimensions 550",
    "cfa": f"{WIDE} {THREE}",
    "cpr": "-b densenet201 -le features.denseblock1 -le features.denseblock2",
    "rd": f"{WIDE} {THREE}",
    "logicrd": f"{WIDE} {THREE}",
    "stpm": f"-b resnet18 {THREE}",
    "fastflow": f"{WIDE} {THREE}",
    "msflow": f"{WIDE} {THREE}",
    "oneclass": f"{WIDE} {TWO}",
    "sparse": "-b pixels -le input",
    "lowrank": "",
    "template": "",
    "frequency": "",
}

LITE = "-b efficientnet_lite0"
CELLS = "dataset --batch_size 16 --resize 160 --imagesize 160 --resize_mode square"
FINE, ALL = "-le blocks.2 -le blocks.4", "-le blocks.1 -le blocks.2 -le blocks.4"
ELPV = {  # of the solar cells, small: all together 20 minutes on two cores
    "net": f"{LITE} {FINE} --pretrain_embed_dimension 256 --target_embed_dimension 256 --gan_epochs 10 "
    f"--auto_noise 0.5 --dsc_lr 0.0001 --dsc_hidden 512 --dsc_margin .5 --pre_proj 1 {CELLS}",
    "net_memory": f"net {LITE} {FINE} --meta_epochs 1 --gan_epochs 20 --recipe memory {CELLS}",
    "patchcore": f"{LITE} {FINE} --pretrain_embed_dimension 256 --target_embed_dimension 256 -p 0.01 {CELLS}",
    "reconpatch": f"{LITE} {FINE} --pretrain_embed_dimension 256 --target_embed_dimension 256 --modulated_dim 256 "
    f"--lr 0.001 --epochs 2 {CELLS}",
    "gaussian": f"{LITE} {ALL} {CELLS}",
    "cfa": f"{LITE} {ALL} --whiten 0.1 --lr 0.0001 --epochs 1 {CELLS}",
    "cpr": f"{LITE} -le blocks.1 -le blocks.2 --kind texture --stem 64 --local_dim 64 --references 5 --pairs 500 "
    f"--epochs 2 {CELLS}",
    "rd": f"{LITE} {ALL} --epochs 5 {CELLS}",
    "logicrd": f"{LITE} {ALL} --epochs 5 {CELLS}",
    "stpm": f"{LITE} {ALL} --epochs 5 {CELLS}",
    "fastflow": f"{LITE} {ALL} --epochs 5 {CELLS}",
    "msflow": f"{LITE} {ALL} --lr 0.0003 --epochs 5 {CELLS}",
    "oneclass": f"{LITE} {ALL} {CELLS}",
    "sparse": f"{LITE} {ALL} {CELLS}",
    "lowrank": CELLS,
    "template": CELLS,
    "frequency": CELLS,
    "multimodal": f"{LITE} -le blocks.4 -le blocks.2 --epochs 5 {CELLS}",
}
