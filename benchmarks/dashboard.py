"""Measures the dashboard (about 5 minutes).

    python -m benchmarks.dashboard [--jobs 1000000 --metrics 10000000] --json

The server runs as in production, on one core of its own. This process requests pages over HTTP from another core.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import text

from benchmarks.browser import browser
from benchmarks.claims import Nowhere, fill
from benchmarks.lab import Lab
from benchmarks.load import Connection
from benchmarks.over_http import BenchServer, full_report, spread, start, upload
from benchmarks.tiny_job import say
from orchestrator.bootstrap import App, build
from orchestrator.config import Settings
from orchestrator.entrypoints.dashboard.assets import assets
from orchestrator.providers.registry import Registry

PAGES = ("app.css", "app.js", "job.js", "icons.svg", "sign.svg", "vendor/htmx.min.js", "vendor/hx-sse.min.js")
PAGES += ("vendor/uPlot.iife.min.js", "vendor/uPlot.min.css")
LONG_CURVE = 100_000
CHART_POINTS, CHART_UPDATES, CHART_NEW = 20_000, 300, 10
VIEWERS, BEAT_EVERY_S, BEATS = 50, 2.0, 15
WARM_UP_S = 5.0
REPEATS = 40


def main() -> int:
    """Run all parts and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--metrics", type=int, default=10_000_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures: dict[str, Any] = {"assets_gzip_kib": round(sum(len(assets()[n].compressed) for n in PAGES) / 1024, 1)}
    with tempfile.TemporaryDirectory(prefix="dashboard-") as temporary:
        folder = Path(temporary)
        figures |= pages(folder / "pages", options.jobs, options.metrics)
        figures |= viewers(folder / "viewers")
    print(json.dumps(figures) if options.json else json.dumps(figures, indent=2))
    return 0


# --- pages over a large database -------------------------------------------------------------------------


def pages(folder: Path, jobs: int, metrics: int) -> dict[str, Any]:
    """Milliseconds until a response is complete at the client, and the chart in a browser."""
    say(f"filling in {jobs} jobs and {metrics} metric rows ...")
    folder.mkdir()
    app = build(Settings(data_dir=folder / "data"), providers=Registry.of({"local": Nowhere()}))
    try:
        fill(app, jobs)
        _fill_metrics(app, metrics)
    finally:
        app.close()
    server = BenchServer(folder)
    os.sched_setaffinity(server.process.pid, {0})
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", trust_env=False, timeout=120) as client:
            client.headers["Authorization"] = f"Bearer {server.token}"
            Lab.wait_for(lambda: _answers(client), "the server's answer")
            say("pages ...")
            times = {
                "job_page_ms": _timed(client, f"/jobs/{_job(1)}"),
                "curve_of_100000_points_ms": _timed(client, f"/jobs/{_job(1)}/curve.json"),
                "job_list_ms": _timed(client, "/"),
                "job_list_by_state_ms": _timed(client, "/?state=succeeded"),
                "job_list_by_name_ms": _timed(client, "/?name=fill"),
                "old_job_list_ms": _timed(client, f"/?cursor={_job(jobs // 2)}"),
                "fleet_ms": _timed(client, "/fleet"),
            }
        return times | chart(server)
    finally:
        server.stop()


def _answers(client: httpx.Client) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return client.get("/healthz").is_success
    return False


def _job(number: int) -> str:
    return f"job-{number:09d}"


def _timed(client: httpx.Client, path: str) -> dict[str, float]:
    client.get(path).raise_for_status()
    took: list[float] = []
    for _ in range(REPEATS):
        began = time.monotonic()
        client.get(path).raise_for_status()
        took.append(1e3 * (time.monotonic() - began))
    return spread(took)


def _fill_metrics(app: App, metrics: int) -> None:
    """The first job gets a curve of `LONG_CURVE` points, the others share the rest."""
    each = max(1, (metrics - LONG_CURVE) // 100_000)
    several = text(f"""WITH RECURSIVE s(step) AS (SELECT 1 UNION ALL SELECT step + 1 FROM s WHERE step < {each})
        INSERT INTO metrics (job_id, name, step, value, fence, at)
        SELECT id, 'loss', step, 2.0 / step, 1, 1e9 + step FROM (SELECT id FROM jobs WHERE id > '{_job(1)}' ORDER BY id
        LIMIT 100000), s ORDER BY 1, 3""")
    one = text(f"""WITH RECURSIVE s(step) AS (SELECT 1 UNION ALL SELECT step + 1 FROM s WHERE step < {LONG_CURVE})
        INSERT INTO metrics (job_id, name, step, value, fence, at)
        SELECT '{_job(1)}', 'loss', step, 2.0 + abs(random() % 1000) / 1000.0, 1, 1e9 + step FROM s""")
    with app.engine.begin() as connection:
        connection.execute(text("UPDATE accounts SET paused = 1"))  # nothing starts while pages are measured
        connection.execute(one)
        if metrics > LONG_CURVE:
            connection.execute(several)
    with app.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")


def chart(server: BenchServer) -> dict[str, Any]:
    """Milliseconds that a chart of 20,000 points needs to add 10 more, and the time between frames meanwhile."""
    say("the chart in a browser ...")
    add = """async ([points, updates, fresh]) => {
        const curve = window.trainhop.curve, took = [], frames = [];
        const rows = (from, count) => [...Array(count).keys()].map((i) => from + i);
        const columns = (from, count) => {
            const s = rows(from, count);
            return [s, s.map((x) => Math.cos(x / 50)), s, s.map(() => 1)];
        };
        curve.state.series.loss = [];
        const session = {number: 1, fence: 1, first: 0, last: points, began: curve.state.began, spent: 0, where: ""};
        curve.state.sessions = [session];
        curve.merge("loss", columns(1, points));
        curve.redraw();
        const frame = () => new Promise(requestAnimationFrame);
        await frame(); await frame();
        for (let n = 0; n < updates; n++) {
            const began = performance.now();
            curve.merge("loss", columns(points + 1 + n * fresh, fresh));
            const merged = performance.now() - began;
            curve.redraw();
            await frame(); await frame();
            took.push(merged + curve.took);
            frames.push((performance.now() - began) / 2);
        }
        return [took, frames];
    }"""
    with browser() as running:
        page = running.new_page()
        link = httpx.post(
            f"http://127.0.0.1:{server.port}/api/v1/login-links", headers={"Authorization": f"Bearer {server.token}"}
        )
        page.goto(link.json()["url"])
        page.wait_for_url(f"http://127.0.0.1:{server.port}/")
        page.goto(f"http://127.0.0.1:{server.port}/jobs/{_job(1)}")
        page.locator(".uplot").wait_for()
        took, frames = page.evaluate(add, [CHART_POINTS, CHART_UPDATES, CHART_NEW])
    return {"chart_update_ms": spread(took), "chart_frame_ms": spread(frames)}


# --- viewers ---------------------------------------------------------------------------------------------


def viewers(folder: Path) -> dict[str, Any]:
    """Latency of heartbeats with 0 and with 50 viewers, each of another job. The server has one core."""
    say(f"{VIEWERS} viewers ...")
    server = BenchServer(folder)
    os.sched_setaffinity(server.process.pid, {0})
    try:
        return asyncio.run(_viewers(server))
    finally:
        server.stop()


async def _viewers(server: BenchServer) -> dict[str, Any]:
    await asyncio.sleep(1.0)
    body = await upload(server)
    setup = await Connection.open("127.0.0.1", server.port)
    jobs: list[str] = []
    leases: list[tuple[str, str, int]] = []
    for _ in range(VIEWERS):
        made = json.loads(
            await setup.post("/api/v1/jobs", body.replace(b'"max_steps": 1,', b'"max_steps": 1000,'), server.token)
        )
        jobs.append(made["id"])
    while len(leases) < VIEWERS:
        ticket = json.loads(await asyncio.get_running_loop().sock_recv(server.launches, 65_536))
        leases.append((ticket["lease"], ticket["token"], (await start(setup, ticket["lease"], ticket["token"])).fence))
    alone, alone_cpu = await _beat(server, leases, 1)
    counts = [0] * VIEWERS
    watching = [asyncio.create_task(_watch(server, job, counts, n)) for n, job in enumerate(jobs)]
    await asyncio.sleep(WARM_UP_S)
    assert all(counts), "every viewer has been told something"
    before = sum(counts)
    watched, watched_cpu = await _beat(server, leases, 1 + BEATS)
    for task in watching:
        task.cancel()
    return {
        "heartbeat_without_viewers_ms": alone,
        "heartbeat_with_50_viewers_ms": watched,
        "server_cpu_share_without_viewers": alone_cpu,
        "server_cpu_share_with_50_viewers": watched_cpu,
        "messages_per_viewer_and_heartbeat": round((sum(counts) - before) / (VIEWERS * BEATS), 2),
    }


async def _beat(server: BenchServer, leases: list[tuple[str, str, int]], first: int) -> tuple[dict[str, float], float]:
    """Every worker reports every `BEAT_EVERY_S`, with the reports spread evenly."""
    latencies: list[float] = []

    async def one(number: int, lease: str, token: str, fence: int) -> None:
        connection = await Connection.open("127.0.0.1", server.port)
        begin = time.monotonic() + BEAT_EVERY_S * number / len(leases)
        for turn in range(BEATS):
            await asyncio.sleep(max(0.0, begin + turn * BEAT_EVERY_S - time.monotonic()))
            sent = time.monotonic()
            await connection.post(f"/api/v1/leases/{lease}/report", full_report(lease, fence, first + turn), token)
            latencies.append(1e3 * (time.monotonic() - sent))
        connection.close()

    began, cpu = time.monotonic(), server.cpu_s()
    await asyncio.gather(*(one(n, *lease) for n, lease in enumerate(leases)))
    share = (server.cpu_s() - cpu) / (time.monotonic() - began)
    return spread(latencies), round(share, 3)


async def _watch(server: BenchServer, job: str, counts: list[int], number: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1 << 22)
    head = f"GET /jobs/{job}/live HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {server.token}\r\n\r\n"
    writer.write(head.encode())
    while line := await reader.readline():
        counts[number] += line.startswith(b"id:")


if __name__ == "__main__":
    sys.exit(main())
