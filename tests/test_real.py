"""The real thing: the packaged backbone on real solar cells, end to end."""

import pandas as pd


def test_elpv_mono_reaches_its_floor(run_main, tmp_path):
    net = "net -b efficientnet_lite0 -le blocks.2 -le blocks.4"
    dims = "--pretrain_embed_dimension 256 --target_embed_dimension 256"
    training = "--gan_epochs 4 --auto_noise 0.25 --dsc_hidden 512 --dsc_margin .5 --pre_proj 1"
    data = "dataset --batch_size 8 --resize 96 --imagesize 96 -d mono elpv"
    done = run_main(*net.split(), *dims.split(), *training.split(), *data.split())
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "results" / "project" / "group" / "test"
    results = pd.read_csv(folder / "results.csv", index_col="class")
    assert results.loc["elpv_mono", "image_auroc"] >= 0.85
    assert results[["pixel_auroc", "pro"]].isna().all(axis=None)
    assert len(pd.read_csv(folder / "models" / "0" / "elpv_mono" / "predictions.csv")) == 431
