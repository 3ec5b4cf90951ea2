"""serve: the scores of predict, an answer to whatever is sent, and a folder beside; asked as programs and pages ask."""

import base64
import http.client
import importlib.util
import io
import json
import re
import signal
import socket
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from browser import chromium, needs_chromium
from commands import Command, wait_for
from PIL import Image

import main
from datasets import declared_size, read_image
from datasets.decode import Reading
from errors import DataError, UsageError
from experiment.model_config import ServeConfig

pytest.importorskip("fastapi")
from experiment.serve.app import PAGE
from experiment.serve.scored import Scored
from experiment.serve.serve import listening, server, service

LIMITS = {"max_upload": 1, "max_images": 3, "max_pixels": 1_000_000}


@pytest.fixture(scope="module")
def port(model, mvtec):
    """Of a service of the small model, with a folder of good and bad images."""
    config = ServeConfig(models=(model, model), folder=mvtec / "bolt" / "test", warm_up=0, **LIMITS)
    with closing(listening("127.0.0.1", 0)) as own, service(config) as app:
        serving = server(app)
        thread = threading.Thread(target=serving.run, kwargs={"sockets": [own]})
        thread.start()
        yield own.getsockname()[1]
        serving.should_exit = True
        thread.join()


@pytest.fixture
def bad(mvtec):
    return mvtec / "bolt" / "test" / "crack" / "000.png"


def form(*files, boundary="x-boundary-x"):
    """The body and the head of a request with files, each a name and its content."""
    head = 'Content-Disposition: form-data; name="image"; filename="{}"\r\nContent-Type: image/png\r\n\r\n'
    parts = [f"--{boundary}\r\n{head.format(name)}".encode() + content + b"\r\n" for name, content in files]
    body = b"".join([*parts, f"--{boundary}--\r\n".encode()])
    return body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}


def ask(port, method, path, body=None, head=None, **options):
    """The status and the answer, from JSON where it is that."""
    with closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
        connection.request(method, path, body, head or {}, **options)
        answer = connection.getresponse()
        content = answer.read()
    return answer.status, json.loads(content) if answer.headers.get_content_subtype() == "json" else content.decode()


def send(port, *files, query=""):
    return ask(port, "POST", f"/predict{query}", *form(*files))


def picture(url):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


def png(width, height):
    """A PNG that says this size and holds a few bytes."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def test_an_image_is_what_predict_says_of_it(port, model, mvtec, bad, tmp_path):
    good = mvtec / "bolt" / "test" / "good" / "000.png"
    words = ["--out", tmp_path / "out", "--map", "raw", "--batch_size", 1, "--regions", "--pixel_threshold", -1]
    main.main([str(word) for word in ["predict", model, bad, good, *words]], standalone_mode=False)
    rows = pd.read_csv(tmp_path / "out" / "predictions.csv")
    regions = pd.read_csv(tmp_path / "out" / "regions.csv")
    files = [(path.name, path.read_bytes()) for path in (bad, good)]
    status, told = send(port, *files, query="?map=true&picture=true&pixel_threshold=-1")
    assert status == 200 and told["model"] == model.name
    for own, (_, row) in zip(told["images"], rows.iterrows(), strict=True):
        assert own["score"] == float(np.float32(row["score"]))
        assert [own["decision"], own["percentile"], own["p_value"]] == [
            row["decision"],
            row["percentile"],
            row["p_value"],
        ]
        assert set(own["latency"]) == {"decode", "embed", "score"} and min(own["latency"].values()) > 0
        (region,), (_, expected) = own["regions"], next(regions[regions["image"] == row["path"]].iterrows())
        assert region["box"] == expected[["left", "top", "width", "height"]].tolist() == [5, 5, 38, 38]
        assert region["outlines"] == [[[5, 5], [5, 43], [43, 43], [43, 5]]] and own["window"] == [5, 5, 43, 43]
        assert region["highest_score"] == pytest.approx(expected["highest_score"])
        heat = picture(own["map"])
        assert heat.shape == (32, 32, 3) and len(np.unique(heat.reshape(-1, 3), axis=0)) > 20
    shown = picture(told["images"][0]["picture"]).astype(int)
    assert np.abs(shown - np.asarray(Image.open(bad))).mean() < 8
    assert (
        send(port, files[0], query=f"?threshold={told['images'][0]['score'] - 1e-6}")[1]["images"][0]["decision"] == 1
    )
    assert [own["light"] for own in told["images"]] == ["brighter", None]  # its square is red
    black = io.BytesIO()
    Image.new("RGB", (48, 48)).save(black, "PNG")
    assert send(port, ("black.png", black.getvalue()))[1]["images"][0]["light"] == "darker"
    plain = send(port, files[0], query=f"?regions=false&model={model.name}_2")[1]["images"][0]
    assert not {"map", "picture", "regions"} & set(plain) and plain["score"] == told["images"][0]["score"]


@pytest.mark.parametrize(
    ("files", "query", "status", "error"),
    [
        ([("a.txt", b"no image")], "", 422, "'a.txt' is not an image that can be read"),
        ([("../../etc/passwd", b"no image")], "", 422, "'passwd' is not an image that can be read"),
        ([("C:\\secret.png", b"")], "", 422, "'secret.png' is empty: expected an image"),
        ([("half.png", png(40, 40)[:60])], "", 422, "'half.png' .*"),
        ([("bomb.png", png(60_000, 60_000))], "", 422, "'bomb.png' is 60000 x 60000, 3600.0 megapixels, .* 1.0 are.*"),
        ([("x" * 999, b"?")], "", 422, f"'{'x' * 200}' is not an image that can be read"),
        ([], "", 400, "no image in the request: .*"),
        ([("a.png", b"")] * 4, "", 400, "Too many files.*3."),
        ([("large.png", bytes(1_100_000))], "", 413, "the request is larger than 1 MB .*"),
        ([("a.png", b"")], "?model=../secret", 404, "no model '../secret': expected mvtec_bolt, mvtec_bolt_2"),
        ([("a.png", b"")], "?threshold=nan", 422, "threshold: .*finite.*"),
        ([("a.png", b"")], "?min_area=0", 422, "min_area: .*"),
    ],
)
def test_what_is_wrong_with_an_upload_is_one_line(port, files, query, status, error):
    found = send(port, *files, query=query)
    assert found[0] == status and set(found[1]) == {"error"}
    assert re.fullmatch(error, found[1]["error"]), found[1]


@pytest.mark.parametrize(
    ("method", "path", "body", "head", "status"),
    [
        ("POST", "/predict", b"x", {"Content-Type": "image/png"}, 415),
        ("POST", "/predict", b"x", {"Content-Type": "multipart/form-data"}, 400),
        ("POST", "/predict", b"rubbish" * 9, {"Content-Type": "multipart/form-data; boundary=x"}, 400),
        ("GET", "/predict", None, {}, 405),
        ("GET", "/../../etc/passwd", None, {}, 404),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", None, {}, 404),
        ("GET", "/scored/99", None, {}, 404),
        ("GET", "/scored/..%2f..", None, {}, 404),
        ("GET", "/scored?since=-1", None, {}, 422),
        ("GET", "/health", None, {"Host": "evil.example"}, 400),
        ("GET", "/", None, {"Host": "[evil.example"}, 400),
        ("GET", "/models", None, {"Host": "127.0.0.1.evil.example:80"}, 400),
    ],
)
def test_other_requests_that_are_wrong(port, method, path, body, head, status):
    found = ask(port, method, path, body, head)
    assert found[0] == status and set(found[1]) == {"error"} and "\n" not in found[1]["error"]


def test_a_body_without_a_length_is_read_up_to_the_limit(port):
    """And to its end: who sends more than is taken gets the answer."""
    body, head = form(("a.png", bytes(3_000_000)))
    parts = (body[i : i + 100_000] for i in range(0, len(body), 100_000))
    status, told = ask(port, "POST", "/predict", parts, head, encode_chunked=True)
    assert status == 413 and "larger than 1 MB" in told["error"]


def test_who_asks_first_is_refused_before_the_body(port):
    _, head = form()
    lines = [f"{name}: {value}" for name, value in head.items()]
    request = ["POST /predict HTTP/1.1", "Host: localhost", "Expect: 100-continue", f"Content-Length: {10**9}", *lines]
    with socket.create_connection(("127.0.0.1", port)) as own:
        own.sendall("\r\n".join([*request, "", ""]).encode())
        assert own.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_a_sender_that_goes_away_harms_nobody(port, bad):
    body, head = form(("a.png", bad.read_bytes()))
    with closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
        connection.putrequest("POST", "/predict")
        for name, value in (head | {"Content-Length": str(2 * len(body))}).items():
            connection.putheader(name, value)
        connection.endheaders(body)
    assert send(port, ("a.png", bad.read_bytes()))[0] == 200


def test_all_of_many_at_once_are_answered(port, bad):
    content = bad.read_bytes()
    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(lambda i: send(port, ("a.png", content if i % 2 else b"?")), range(20)))
    assert [status for status, _ in found] == [422, 200] * 10
    assert len({told["images"][0]["score"] for status, told in found if status == 200}) == 1


def test_metrics_count(port, bad):
    def counted():
        text = ask(port, "GET", "/metrics")[1]
        assert all(re.fullmatch(r"# (HELP|TYPE) .+|\w+(\{.+\})? [\d.e+-]+", line) for line in text.splitlines())
        pairs = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    assert ask(port, "GET", "/health") == (200, {"status": "ok", "models": ["mvtec_bolt", "mvtec_bolt_2"]})
    before = counted()
    send(port, ("a.png", bad.read_bytes()), query="?threshold=1e9")
    send(port, ("a.png", b"?"))
    after = counted()
    grown = {name: after[name] - before.get(name, 0) for name in after if '/predict"' in name or "images" in name}
    assert grown['simplenet_requests_total{path="/predict",status="200"}'] == 1
    assert grown['simplenet_requests_total{path="/predict",status="422"}'] == 1
    assert grown['simplenet_errors_total{path="/predict"}'] == 1
    assert grown['simplenet_request_seconds_count{path="/predict"}'] == 2
    assert grown['simplenet_request_seconds_bucket{path="/predict",le="+Inf"}'] == 2
    assert grown['simplenet_request_seconds_sum{path="/predict"}'] > 0
    assert grown['simplenet_images_total{model="mvtec_bolt",decision="normal"}'] == 1


def test_the_folder_is_scored_by_all_models(port, model, bad):
    told = wait_for(lambda: (own := ask(port, "GET", "/scored")[1])["done"] == own["total"] and own)
    rows = {row["name"]: row for row in told["rows"]}
    assert told["next"] == len(rows) == 4
    assert [(name, rows[name]["label"], rows[name]["is_bad"]) for name in sorted(rows)] == [
        *[(f"crack/00{i}.png", "crack", True) for i in range(2)],
        *[(f"good/00{i}.png", "good", False) for i in range(2)],
    ]
    score = send(port, ("a.png", bad.read_bytes()))[1]["images"][0]["score"]
    own = rows["crack/000.png"]
    assert own["scores"] == {"mvtec_bolt": score, "mvtec_bolt_2": score} and "path" not in own
    one = ask(port, "GET", f"/scored/{own['number']}?picture=true&model=mvtec_bolt_2")[1]
    assert one["score"] == score and one["name"] == "crack/000.png" and one["picture"]
    assert ask(port, "GET", f"/scored?since={told['next']}")[1]["rows"] == []


def test_the_page_needs_nothing_else(port):
    with closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
        connection.request("GET", "/")
        answer = connection.getresponse()
        page = answer.read().decode()
    assert page == PAGE.read_text() and answer.headers["Content-Type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert set(re.findall(r"https?://[^\"' ]+", page)) == {"http://www.w3.org/2000/svg"}
    (told, _) = ask(port, "GET", "/models")[1]
    assert told["name"] == "mvtec_bolt" and told["threshold"] > 0 and told["draws_maps"]


@needs_chromium
def test_the_page_in_chromium(port):
    """It runs without a word on the console, and shows what is scored."""
    wait_for(lambda: (own := ask(port, "GET", "/scored")[1])["done"] == own["total"])
    rules = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    words = [rules, "--virtual-time-budget=5000", "--dump-dom", f"http://127.0.0.1:{port}/"]
    done = chromium(*words, width=1000, height=800)
    assert "CONSOLE" not in done.stderr
    threshold = ask(port, "GET", "/models")[1][0]["threshold"]
    rows = ask(port, "GET", "/scored")[1]["rows"]
    alarms = sum(row["scores"]["mvtec_bolt"] > threshold for row in rows if not row["is_bad"])
    assert f"false alarms: {alarms} of 2 good images" in done.stdout
    assert all(f'<span class="name" title="{row["name"]}">' in done.stdout for row in rows)


def test_ctrl_c_ends_it(model, tmp_path):
    process = Command(["serve", model, "--port", 0, "--warm_up", 1], tmp_path)
    said = process._streams[1]
    place = wait_for(
        lambda: said.exists() and re.search(r"Serving on http://127.0.0.1:(\d+)/ ", said.read_text()), process
    )
    assert ask(int(place[1]), "GET", "/health")[1]["status"] == "ok"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 0 and "Traceback" not in errors and "Error" not in errors


def scored_table(path, models=("m",)):
    scored = Scored(SimpleNamespace(finders=dict.fromkeys(models)))
    scored.take_folder(path)
    return [(row.label, row.is_bad, row.scores.get("m"), row.error) for row in scored.rows]


def test_scores_of_a_table(model, tmp_path):
    """Of a run, of predict with good and bad images, and of predict without."""
    run = pd.read_csv(model / "predictions.csv")
    found = scored_table(model / "predictions.csv")
    assert [own[:3] for own in found] == list(zip(run["defect_type"], run["label"] == 1, run["score"], strict=True))
    table = tmp_path / "predictions.csv"
    table.write_text("path,score,decision,error\na/good/1.png,1.5,1,\na/scratch/1.png,,,broken\n")
    assert scored_table(table) == [("good", False, 1.5, ""), ("scratch", True, None, "broken")]
    table.write_text("path,score\na/new/1.png,1.5\n")
    assert scored_table(table) == [("", None, 1.5, "")]
    with pytest.raises(UsageError, match="holds the scores of one model: give one, not 2"):
        scored_table(table, ("m", "n"))
    table.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"is no predictions[.]csv that predict or a run wrote"):
        scored_table(table)
    with pytest.raises(UsageError, match=r"neither a folder of images nor a predictions[.]csv"):
        scored_table(tmp_path / "gone")


def test_a_watched_folder_is_scored(model, tmp_path, monkeypatch, bad):
    monkeypatch.setattr("experiment.use.arrivals.SECONDS", 0.01)
    (tmp_path / "in").mkdir()
    with service(ServeConfig(models=(model,), watch=tmp_path / "in", warm_up=0)) as app:
        scored = next(own.cell_contents for own in _endpoint(app, "/scored").__closure__)
        (tmp_path / "in" / "a.png").write_bytes(bad.read_bytes())
        wait_for(lambda: scored.rows)
        own = scored.row(0)
        (tmp_path / "in" / "a.png").unlink()
    assert own.name == "a.png" and own.label == "" and own.is_bad is None and not own.error
    assert list(own.scores) == [model.name]
    assert not [thread for thread in scored._threads if thread.is_alive()]


def _endpoint(app, path):
    return next(route.endpoint for route in app.routes if route.path == path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("{model} --folder {gone}", "neither a folder of images"),
        ("{model} --watch {gone}", "--watch '.*gone' is not a folder"),
        ("{gone}", "is not the folder of a model"),
        ("{model} --host no.such.host.invalid", "--host no.such.host.invalid: no such host"),
    ],
)
def test_mistakes(model, tmp_path, words, message):
    with pytest.raises(UsageError, match=message):
        words = words.format(model=model, gone=tmp_path / "gone").split()
        main.main(["serve", *words, "--port", "0"], standalone_mode=False)


def test_a_port_in_use(tmp_path):
    """It is said before a model is looked for."""
    with closing(listening("127.0.0.1", 0)) as own:
        taken = own.getsockname()[1]
        with pytest.raises(UsageError, match=f"--port {taken} at 127.0.0.1: .*in use; choose another --port"):
            main.main(["serve", str(tmp_path / "gone"), "--port", str(taken)], standalone_mode=False)


def test_packages_that_are_missing(monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name))
    with pytest.raises(UsageError, match=r"^serve needs uvicorn: pip install -r requirements-serve[.]txt$"):
        main.main(["serve", str(tmp_path)], standalone_mode=False)


def test_a_large_tiff_of_16_bit_colours_is_refused_undecoded(tmp_path, monkeypatch):
    """Pillow does not know its kind, and OpenCV says a size only with the pixels."""
    import cv2

    path = tmp_path / "deep.tiff"
    cv2.imwrite(str(path), np.zeros((30, 50, 3), np.uint16))
    assert declared_size(path) == (50, 30)
    assert read_image(path, Reading(max_pixels=1500)).size == (50, 30)
    monkeypatch.setattr("datasets.decode.decoded_by_opencv", lambda path: pytest.fail("it was decoded"))
    with pytest.raises(DataError, match="is 50 x 30"):
        read_image(path, Reading(max_pixels=1499))
    (tmp_path / "notes.txt").write_text("no image")
    assert declared_size(tmp_path / "notes.txt") is None
