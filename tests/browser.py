"""A page in headless Chromium: what it says on its console, and whether it fits and its pictures load."""

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OFFLINE = "--disable-background-networking --disable-component-update --disable-sync --no-first-run --disable-quic"
PROBE = """
<script>
const images = [...document.images];
images.forEach(image => image.loading = "eager");
addEventListener("load", () => {
  const found = {
    images: images.length,
    broken: images.filter(image => !image.naturalWidth).length,
    overflow: document.documentElement.scrollWidth - innerWidth,
    width: innerWidth,
    text: document.body.innerText,
  };
  const note = document.createElement("script");
  note.type = "application/json";
  note.id = "probe";
  note.textContent = JSON.stringify(found).replaceAll("<", "\\\\u003c");
  document.body.append(note);
});
</script>
"""

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


def chromium(*words: str, width: int, height: int) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as profile:
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", *OFFLINE.split()]
        command += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}"]
        command += ["--enable-logging=stderr", f"--window-size={width},{height}", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def visit(page: Path, folder: Path, width: int, height: int = 900) -> dict:
    """What a copy of the page shows at a window's size: see PROBE; and "console", its lines."""
    copy = folder / "probed.html"
    copy.write_text(page.read_text().replace("</body>", PROBE + "</body>"))
    done = chromium("--virtual-time-budget=20000", "--dump-dom", copy.as_uri(), width=width, height=height)
    (note,) = re.findall(r'<script type="application/json" id="probe">(.*?)</script>', done.stdout, re.S)
    return json.loads(note) | {"console": [line for line in done.stderr.splitlines() if "CONSOLE" in line]}
