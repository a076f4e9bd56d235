"""What a reader sees: the report and MLflow's registry page, opened in headless Chromium."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from d2v_platform.launch import launch
from d2v_platform.recipe.compose import compose
from d2v_platform.registry.register import promote, show
from d2v_platform.reports.report import write_report
from d2v_platform.tracking.tracker import MetricPoint, NewRun, Tracker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # a browser and a server start

_NO_NETWORK = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
               "--disable-background-networking", "--disable-component-update")  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, the system's; skips where there is none."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no browser: install chromium (apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=list(_NO_NETWORK))
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A window; ``page.foreign`` lists what it asked of places other than this machine."""
    window = browser.new_page(viewport={"width": 1400, "height": 1100})
    window.set_default_timeout(120_000)
    window.foreign, window.errors = [], []
    own = ("file://", "data:", "blob:", "http://127.0.0.1:")
    window.on("request", lambda r: None if r.url.startswith(own) else window.foreign.append(r.url))
    window.on("pageerror", lambda error: window.errors.append(str(error)))
    yield window
    window.close()


# What is drawn of one line: its length on the screen, its box, and the height at its first and last vertex.
_MEASURE = """id => {
    const path = document.getElementById(id).querySelector('path'), box = path.getBoundingClientRect();
    const svg = path.ownerSVGElement.getBoundingClientRect(), total = path.getTotalLength();
    return {length: total, width: box.width, height: box.height,
            start: path.getPointAtLength(0).y, end: path.getPointAtLength(total).y,
            inside: box.left >= svg.left && box.right <= svg.right && box.top >= svg.top
                    && box.bottom <= svg.bottom,
            colour: getComputedStyle(path).stroke, fill: getComputedStyle(path).fill};
}"""


def test_a_reports_curves_are_drawn(tracker: Tracker, page: Any, tmp_path: Path) -> None:
    run = tracker.open_run(NewRun(experiment="e", name="drawn", params={"model": {"min_target_var": 0.1}}))
    keys = {"train/loss": -1, "valid/loss": -1, "train/target_var": 1, "train/lr": 1, "train/ema_decay": 1,
            "speed/tokens_per_s": 1}  # fmt: skip
    points = [
        MetricPoint(key, step, 5 + sign * step / 100, 1_700_000_000_000)
        for key, sign in keys.items()
        for step in range(1, 401)
    ]
    tracker.log(run.run_id, points)
    tracker.finish(run.run_id)
    report = write_report(["drawn"], out=tmp_path)
    page.goto(report.html.as_uri())
    assert page.title() == "drawn"
    panels = {"train/loss": "loss", "valid/loss": "loss", "train/target_var": "variance", "train/lr": "lr",
              "train/ema_decay": "ema", "speed/tokens_per_s": "throughput"}  # fmt: skip
    colours = {}
    for key, sign in keys.items():
        seen = page.evaluate(_MEASURE, f"{panels[key]}:{key}")
        assert seen["inside"] and seen["width"] > 300 and seen["height"] > 100, (key, seen)
        assert (seen["end"] - seen["start"]) * sign < -50, (key, seen)  # upwards is smaller
        colours[key] = seen["colour"]
        assert seen["colour"].startswith("rgb(") and seen["fill"] == "none"
    assert colours["train/loss"] != colours["valid/loss"]
    loss = page.locator("#panel-loss svg")
    assert loss.is_visible() and loss.get_by_text("valid/loss").is_visible()
    assert page.get_by_text("EMA decay of the teacher").is_visible()
    # Two drawings beside each other at this width, and none wider than the window.
    boxes = [figure.bounding_box() for figure in page.locator("figure").all()]
    assert boxes[0]["y"] == boxes[1]["y"] and all(b["x"] + b["width"] <= 1400 for b in boxes)
    assert not page.foreign and not page.errors


@pytest.fixture
def trained_twice(tiny_text: Path, mlflow_home: Path) -> str:
    """Two versions of a tiny pretrained model, registered by two trainings; the first is the champion."""
    for lr in ("1e-3", "2e-3"):
        overrides = [
            f"task.data={tiny_text}", "platform.num_workers=0", "platform.register_as=tiny-text",
            f"optimization.lr=[{lr}]", "optimization.max_update=4", "model.embed_dim=32", "model.num_heads=2",
            "model.average_top_k_layers=1", "model.modalities.text.decoder.decoder_dim=16",
            "model.depth=1", "task.tokens_per_sample=32", "common.log_interval=2",
            "platform.threads_per_worker=1", "optimizer.groups.default.lr_scheduler.warmup_updates=1",
        ]  # fmt: skip
        launch(compose("tiny/text_pretraining", overrides))
    return "tiny-text"


@pytest.fixture
def image_version(pictures: Path, mlflow_home: Path) -> str:
    """A version of a tiny pretrained image model."""
    overrides = [
        f"task.data={pictures}", "platform.num_workers=0", "platform.register_as=tiny-image",
        "optimization.max_update=4", "dataset.batch_size=8", "model.embed_dim=32", "model.num_heads=2",
        "model.depth=1", "model.average_top_k_layers=1", "model.modalities.image.embed_dim=32",
        "model.modalities.image.decoder.decoder_dim=16", "common.log_interval=2",
        "optimizer.groups.default.lr_scheduler.warmup_updates=1",
    ]  # fmt: skip
    launch(compose("tiny/image_pretraining", overrides))
    return "tiny-image"


@pytest.fixture
def mlflow_server(mlflow_home: Path, tmp_path: Path) -> Iterator[str]:
    """MLflow's server over the test's database."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path / "mlflow_server.log"
    uri = f"sqlite:///{mlflow_home / 'mlflow' / 'mlflow.db'}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
               "--workers", "1", "--backend-store-uri", uri]  # fmt: skip
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, cwd=tmp_path, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 180
        while True:
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def test_the_registry_page_shows_versions_aliases_and_the_card(
    browser: Any, trained_twice: str, image_version: str, new_tracker: Any, mlflow_server: str, page: Any
) -> None:
    tracker = new_tracker()
    promote(tracker, name=trained_twice, version=1, alias="champion")
    promote(tracker, name=trained_twice, version=2, alias="challenger")
    page.goto(f"{mlflow_server}/#/models/{trained_twice}")
    for version, alias in (("Version 1", "champion"), ("Version 2", "challenger")):
        row = page.get_by_role("row").filter(has=page.get_by_role("link", name=version))
        row.get_by_text(alias).wait_for()
        other = "challenger" if alias == "champion" else "champion"
        assert row.get_by_text(other).count() == 0
    page.get_by_role("link", name="Version 2").click()
    page.get_by_role("heading", name="How to load it").wait_for()
    page.get_by_text("challenger").first.wait_for()
    changed = page.get_by_role("row").filter(has_text="optimization.lr").first
    assert changed.locator("td").all_inner_texts() == ["optimization.lr", "[0.0005]", "[0.002]"]
    newest = show(tracker, trained_twice).versions[0]
    loss = page.get_by_role("row").filter(has=page.get_by_role("cell", name="train/loss", exact=True))
    logged = tracker.client.get_run(newest.run_id).data.metrics["train/loss"]
    assert loss.locator("td").nth(1).inner_text() == f"{logged:.4g}"
    for heading in ("Recipe", "Results", "Lineage", "Limits", "Licence"):
        assert page.get_by_role("heading", name=heading, exact=True).is_visible(), heading
    assert newest.tags["data.fingerprint"] in page.inner_text("body")
    assert not page.foreign

    # Pictures: curves of any run, masks of an image model; loaded, not only linked.
    for name, pictures in ((trained_twice, ["curves"]), (image_version, ["curves", "masks"])):
        page.goto(f"{mlflow_server}/#/models/{name}/versions/1")
        page.get_by_role("heading", name="Pictures").wait_for()
        shown = [page.locator(f"img[src*='card/{picture}.png']") for picture in pictures]
        for picture in shown:
            picture.wait_for()
            page.wait_for_function("e => e.complete && e.naturalWidth > 300", arg=picture.element_handle())
    assert not page.foreign
