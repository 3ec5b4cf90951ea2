"""PatchCore against the arrays of other programs, its memory bank, and what extends a trained model."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL_DATA, make_mvtec, small
from PIL import Image
from test_resume import folder

import backbones
import main
from backbones import embed_patches
from datasets import Header, ImageSizes, brightness_of, read_image
from detection import Normal, memory_bank
from detection.anomaly_map import anomaly_maps
from detection.brightness import like
from detection.memory_bank import BankOptions, MemoryBank, owners_of
from detection.whitening import whitening
from errors import DataError, UsageError
from methods import load
from methods.cfa import patch_features
from methods.patchcore import PatchCore

FILE = np.load(Path(__file__).parent / "golden" / "patchcore.npz")
GOLDEN = {name: torch.from_numpy(FILE[name]) for name in FILE.files if name != "meta"}
META = json.loads(str(FILE["meta"]))
QUERIES = GOLDEN["queries"].unflatten(0, (2, -1))


def bank(rows=None, dimension=16, **options):
    made = MemoryBank(BankOptions(**options), dimension if rows is None else rows.shape[1], seed=0)
    if rows is not None:
        made.memory = rows
    return made


def batches(images=6, batch=2, seed=0, dimension=16):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, 4, 4, dimension, generator=generator).split(batch)


def apart(ours, theirs):
    """How far each row is from the nearest of others."""
    return torch.cdist(ours, theirs, compute_mode="donot_use_mm_for_euclid_dist").amin(dim=1)


def small_patchcore(**options):
    backbone = backbones.load("resnet18", "random")
    options = {"pretrain_embed_dimension": 24, "target_embed_dimension": 16, **options}
    return PatchCore(backbone, ["layer1", "layer2"], (32, 32), **options)


def test_embeddings_are_those_of_other_programs():
    maps = [GOLDEN["layer2"], GOLDEN["layer3"]]
    for i, case in enumerate(META["embed_cases_pretrain_target_patchsize"]):
        found = embed_patches(maps, *case).flatten(0, 1)
        torch.testing.assert_close(found, GOLDEN[f"embed{i}"], rtol=0, atol=1e-5)
    torch.testing.assert_close(patch_features(maps).flatten(0, 2), GOLDEN["embed_anomalib"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"anomaly_scorer_num_nn": 2}, {"reweight": 3}])
def test_training_images_are_scored_as_new_ones(options):
    """As by a model that is trained without them; an image by itself, and a patch of all images, are not forgotten."""
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    detector = small_patchcore(sampler="identity", **options)
    embedded = detector.embed(images)
    list(detector.training_on(Normal([embedded])))
    found = list(detector.scored_as_new(lambda: embedded.split(3)))
    for i in range(len(images)):
        other = small_patchcore(sampler="identity", **options)
        list(other.training_on(Normal([embedded[torch.arange(4) != i]])))
        (expected,), own = other.score(embedded[i : i + 1]).scores, found[i // 3].scores[i % 3]
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-5)
        assert own > detector.score(embedded).scores[i]
    (alone,) = detector.scored_as_new(lambda: [torch.cat([embedded, embedded])])
    torch.testing.assert_close(alone.scores[4:], detector.score(embedded).scores)  # its patches are of the first


def test_patches_of_a_bank_know_their_images():
    images = torch.cat(batches()).flatten(1, 2)
    images[3, 5] = images[1, 2]
    own = bank(torch.stack([images[4, 0] + 1e-4, images[1, 2], torch.full((16,), 9.0), images[0, 7]]))
    assert owners_of(own.memory, images.split(4)).tolist() == [4, 1, -1, 0]


@pytest.mark.parametrize("k", [1, 3])
def test_scores_are_those_of_the_authors_program(k):
    scores = bank(GOLDEN["memory_bank"], anomaly_scorer_num_nn=k)(QUERIES)
    torch.testing.assert_close(scores.patches.flatten(), GOLDEN[f"patch_scores_k{k}"], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(scores.images, GOLDEN[f"image_scores_k{k}"], rtol=1e-5, atol=1e-4)
    if k == 1:
        maps = anomaly_maps(scores.patches.unflatten(1, tuple(META["grid"])), tuple(META["image_size"]))
        torch.testing.assert_close(maps, GOLDEN["map_reference"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("b", [3, 9])
def test_reweighted_scores_are_those_of_the_paper(b):
    scores = bank(GOLDEN["memory_bank"], reweight=b)(QUERIES)
    torch.testing.assert_close(scores.patches.flatten(), GOLDEN["anomalib_patch_scores"], rtol=0, atol=1e-4)
    for name in (f"anomalib_image_scores_b{b}", f"eq7_neighbours_of_mstar_b{b}"):
        torch.testing.assert_close(scores.images, GOLDEN[name].float(), rtol=0, atol=1e-4)
    far = bank(GOLDEN["memory_bank"] * 1000, reweight=b)(QUERIES * 1000)  # whose exp is infinite
    assert far.images.isfinite().all() and (far.images > 0).all()


def test_scores_are_those_of_anomalib():
    models = pytest.importorskip("anomalib.models.image.patchcore.torch_model")
    generator = torch.Generator().manual_seed(0)
    rows, queries = torch.randn(900, 16, generator=generator), torch.randn(3, 64, 16, generator=generator) * 1.2
    theirs = models.PatchcoreModel.__new__(models.PatchcoreModel)  # its own would load a backbone
    torch.nn.Module.__init__(theirs)
    theirs.num_neighbors = 9
    sampler = models.KCenterGreedy(rows, 0.05)
    theirs.memory_bank = rows[sampler.select_coreset_idxs()]
    patches, places = theirs.nearest_neighbors(queries.flatten(0, 1), 1)
    images = theirs.compute_anomaly_score(patches.view(3, 64), places.view(3, 64), queries.flatten(0, 1))
    found = bank(theirs.memory_bank, reweight=9)(queries)
    torch.testing.assert_close(found.patches, patches.view(3, 64), rtol=0, atol=1e-4)
    torch.testing.assert_close(found.images, images, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sampler", ["identity", "greedy_coreset", "approx_greedy_coreset", "random"])
def test_a_bank_keeps_rows_as_they_are(sampler):
    """However they were chosen, and what is made of them; the radius is that of the rows."""
    rows = torch.cat([one.flatten(0, 2) for one in batches()])  # 96
    found = bank(sampler=sampler, percentage=0.21)
    said = found.fill(batches(), lambda own: own.float() * 2)
    assert len(found.memory.unique(dim=0)) == len(found.memory) == (96 if sampler == "identity" else 20)
    assert apart(found.memory, rows * 2).max() == 0 and found.seen == 96
    if sampler == "random":
        assert said == {}
    else:
        expected = apart(rows * 2, found.memory).max().item()
        assert said["covering_radius"] == pytest.approx(expected, abs=2e-3)


def test_what_does_not_fit_is_drawn(monkeypatch):
    monkeypatch.setattr(memory_bank, "WORKING_MEMORY", 40 * (16 * 4 + 2 * 4 * 16))
    largest = 0

    def watched(features, *more):
        nonlocal largest
        largest = len(features)
        return picked(features, *more)

    picked = memory_bank.coreset
    monkeypatch.setattr(memory_bank, "coreset", watched)
    found = bank(percentage=0.1)
    found.fill(batches())
    assert (largest, len(found.memory), found.seen) == (40, 9, 96)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"percentage": 0.005}, "--percentage 0.005 would keep 0 of the 96 patches .*: raise it, or give --bank_size"),
        ({"bank_size": 97}, "--bank_size 97 would keep 97 of the 96 patches of the normal images: lower it"),
        ({"percentage": 0.05, "reweight": 9}, "a memory bank of 4 patches has fewer than --reweight 9: lower that"),
        ({"bank_size": 10**9}, r"a memory bank of 1000000000 patches of 16 values takes 59.6 GiB, .* GiB are free"),
        ({"sampler": "identity"}, "a memory bank of 96 patches .* GiB are free: choose another --sampler"),
    ],
)
def test_a_bank_that_cannot_be_filled_is_said_before(options, message, monkeypatch):
    free = 96 * 16 * 4 if "sampler" in options else 2**33
    monkeypatch.setattr(memory_bank, "free_on", lambda device: free)
    with pytest.raises(DataError, match=message):
        bank(**options).fill(batches())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reweight": 1}, "--reweight 1 would make all scores 0"),
        ({"sampler": "identity", "bank_size": 5}, "leave --bank_size out"),
        ({"bank_size": 5, "anomaly_scorer_num_nn": 6}, "5 patches has fewer than --anomaly_scorer_num_nn 6"),
        ({"percentage": 0.0}, "--percentage 0.0 must be above 0"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        small_patchcore(**options)


def test_whitened_distances_are_of_whitened_features():
    detector = small_patchcore(sampler="identity", whiten=0.1)
    own, (query,) = batches(), batches(2, seed=1)
    detector.fit_embeddings(own)
    weight, bias = whitening(own, 0.1)
    rows, query_rows = (part.flatten(0, -2) @ weight.T + bias for part in (torch.cat(own), query))
    expected = torch.cdist(query_rows, rows).amin(dim=1).square().view(2, 4, 4)
    torch.testing.assert_close(detector.score(query).scores, expected.amax(dim=(1, 2)), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"whiten": 0.1}])
def test_extending_a_bank_of_all_is_training_on_both(options):
    """Whitening stays: both are whitened by the first images."""
    first, second, (query,) = batches(), batches(4, seed=1), batches(2, seed=2)
    extended, whole = (small_patchcore(sampler="identity", **options) for _ in range(2))
    extended.fit_embeddings(first)
    extended.extend(second)
    whole.fit_embeddings(first)
    whole.bank.fill([*first, *second], whole.compared)
    found, expected = extended.score(query), whole.score(query)
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found.maps, expected.maps, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("sampler", ["approx_greedy_coreset", "greedy_coreset", "random"])
def test_extending_keeps_the_size_and_takes_of_both(sampler):
    first, second = batches(), [own + 5 for own in batches(6, seed=1)]
    found = bank(sampler=sampler, bank_size=30)
    found.fill(first)
    before = found.memory.clone()
    found.extend(second)
    stayed = int((apart(found.memory, before) == 0).sum())
    assert len(found.memory) == 30 and found.seen == 192 and 5 <= stayed <= 25
    further = torch.cat([own.flatten(0, 2) for own in second])
    assert int((apart(found.memory, further) == 0).sum()) == 30 - stayed


@pytest.fixture(scope="module")
def trained(mvtec, tmp_path_factory):
    where = tmp_path_factory.mktemp("patchcore")
    words = ["--results_path", where / "results", "--precision", "fp32", *small("patchcore"), "dataset", *SMALL_DATA]
    main.main([str(word) for word in [*words, "-d", "bolt", "mvtec", mvtec]], standalone_mode=False)
    return folder(where) / "models/0/mvtec_bolt"


def test_extend_writes_a_model_of_its_own(trained, tmp_path, capsys):
    """Its thresholds are those of the images that were held out; the one it came from stays as it is."""
    root = make_mvtec(tmp_path / "more", ["nut"], train=5)
    before = {path: path.read_bytes() for path in trained.iterdir() if path.is_file()}
    words = ["extend", trained, root / "nut/train", "--out", tmp_path / "new", "--train_val_split", "0.6"]
    main.main([str(word) for word in words], standalone_mode=False)
    assert "3 images taken in; image threshold" in capsys.readouterr().err
    old, new = load(trained), load(tmp_path / "new")
    assert old.detector.bank.memory.shape == new.detector.bank.memory.shape == (51, 16)
    assert int(new.detector.bank.seen) == int(old.detector.bank.seen) / 4 * 7
    assert new.thresholds.source == "held-out normal images" and new.thresholds.images == 2
    held_out = sorted((root / "nut/train").rglob("*.png"))[2::2]
    assert new.thresholds.image == pytest.approx(new.predict(held_out).scores.max().item(), rel=1e-4)
    levels = np.array([brightness_of(new.transform.pixels(read_image(path))) for path in held_out])
    assert new.thresholds.brightness == pytest.approx(like(levels, 0.95))
    assert new.description.metrics == {} and old.description.options == new.description.options
    assert {path: path.read_bytes() for path in trained.iterdir() if path.is_file()} == before


def test_what_cannot_be_extended_is_said(trained, model, tmp_path, run_main):
    (tmp_path / "empty").mkdir()
    smaller = make_mvtec(tmp_path / "more", ["nut"], train=5) / "nut/train"
    for path in sorted(smaller.rglob("*.png"))[3:]:
        Image.open(path).crop((0, 0, 48, 40)).save(path)
    cases = [
        ([model, tmp_path], 2, "is a model of net, which keeps no memory bank"),
        ([trained, tmp_path / "gone"], 2, "is not a folder"),
        ([trained, tmp_path / "empty"], 1, "no images in"),
        ([trained, tmp_path / "empty", "--out", tmp_path], 2, "is there already"),
        ([trained, smaller], 1, "003.png' is 48 x 40 pixels, and 1 more are of other sizes too: expected 48 x 48, as"),
    ]
    for words, code, message in cases:
        done = run_main("extend", *words)
        assert done.returncode == code, done.stderr
        assert message in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert not (tmp_path / "extended").exists()


def test_sizes_are_those_of_the_files_that_were_trained_on(trained, tmp_path):
    """Within their range others are taken in; a model that does not say it, as older ones, takes any."""
    sizes = ImageSizes.of([Header(48, 40), Header(50, 44)])
    assert [sizes.hold(Header(*own)) for own in ((50, 40), (48, 44), (51, 40), (47, 44), (50, 45), (40, 48))] == [
        True,
        True,
        *[False] * 4,
    ]
    copied = shutil.copytree(trained, tmp_path / "copy")
    description = json.loads((copied / "model.json").read_text())
    assert description.pop("image_sizes") == {"width": [48, 48], "height": [48, 48]}
    for bad in ({"width": [48, 48]}, {"width": [48, 48], "height": [48, 40]}, {"width": [48, 48], "height": "48"}):
        (copied / "model.json").write_text(json.dumps({**description, "image_sizes": bad}))
        with pytest.raises(DataError, match="cannot be read as a model's description"):
            load(copied)
    (copied / "model.json").write_text(json.dumps(description))
    root = make_mvtec(tmp_path / "more", ["nut"], size=40, train=2)
    main.main(["extend", str(copied), str(root / "nut/train"), "--out", str(tmp_path / "new")], standalone_mode=False)
    assert load(tmp_path / "new").description.image_sizes is None


def test_a_damaged_bank_is_said(trained, tmp_path):
    copied = shutil.copytree(trained, tmp_path / "copy")
    description = json.loads((copied / "model.json").read_text())
    description["options"]["target_embed_dimension"] = 12
    (copied / "model.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match=r"bank.memory is torch.float32 \[51, 16\]"):
        load(copied)


def test_net_reads_the_same_bank(caught_tasks, mvtec):
    """Its features with the same dimensions have the same key."""
    words = [small(command) for command in ("net", "patchcore")]
    (ours,), (theirs,) = (caught_tasks([*own, "dataset", *SMALL_DATA, "-d", "nut", "mvtec", mvtec]) for own in words)
    assert ours.features == theirs.features


def test_passes_are_counted():
    assert small_patchcore().passes == 1 and small_patchcore(whiten=0.1).passes == 2
    assert [stats.details["covering_radius"] > 0 for stats in small_patchcore().training_on(Normal(batches()))] == [
        True
    ]
