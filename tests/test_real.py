"""The real thing: the packaged backbone on real solar cells, end to end, by three detectors in one chain."""

import pandas as pd

DETECTORS = {  # of each its options, and the image AUROC that it reaches; full settings are in benchmarks/accuracy.py
    "net": (
        "-le blocks.2 -le blocks.4 --pretrain_embed_dimension 256 --target_embed_dimension 256 --gan_epochs 4 "
        "--auto_noise 0.25 --dsc_hidden 512 --dsc_margin .5 --pre_proj 1",
        0.85,
    ),
    "cfa": ("-le blocks.1 -le blocks.2 -le blocks.4 --whiten 0.1 --lr 0.0001 --epochs 1", 0.88),
    "rd": ("-le blocks.1 -le blocks.2 -le blocks.4 --blocks 1 --epochs 3", 0.9),
}


def test_elpv_mono_reaches_its_floors(run_main, tmp_path):
    chain = [f"{name} -b efficientnet_lite0 {options}" for name, (options, _) in DETECTORS.items()]
    data = "dataset --batch_size 8 --resize 96 --imagesize 96 --resize_mode aspect -d mono elpv"
    done = run_main("--eval_every", "4", *" ".join([*chain, data]).split())
    assert done.returncode == 0, done.stderr
    for name, (_, floor) in DETECTORS.items():
        folder = tmp_path / "results/project/group/test" / name
        results = pd.read_csv(folder / "results.csv", index_col="class")
        assert results.loc["elpv_mono", "image_auroc"] >= floor, name
        assert results[["pixel_auroc", "pro"]].isna().all(axis=None)
        assert len(pd.read_csv(folder / "models/0/elpv_mono/predictions.csv")) == 431
