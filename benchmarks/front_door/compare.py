"""Compares eight long jobs: the server's time for the page and for each of its curves, and drawings of many updates."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from sqlalchemy import insert

from benchmarks.browser import browser
from benchmarks.report import Figure
from orchestrator.adapters.database import tables
from tests.helpers.page_server import PageServer, page_server, values
from tests.http.http_client import Machine

if TYPE_CHECKING:
    from playwright.sync_api import Browser

JOBS, STEPS, TIMES, MAX_MS = 8, 20_000, 9, 400
METRICS = ("loss", "eval_loss", "learning_rate", "grad_norm", "tokens_per_s", "memory")
EVAL_EVERY, READ_EVERY = 100, 20
UPDATES = 20


def compare(folder: Path, running: Browser | None = None) -> Iterator[Figure]:
    """Eight jobs of 20,000 steps, with a value of each metric for each step, on SQLite. Medians of several requests."""
    with page_server(folder) as server:
        jobs = [_trained(server, number) for number in range(JOBS)]
        query = "&".join(f"job={job}" for job in jobs)
        yield from _measured(server, query)
        if running is not None:
            yield _drawn(server, query, running)
        else:
            with browser() as own:
                yield _drawn(server, query, own)


def _trained(server: PageServer, number: int) -> str:
    """A job that trained all steps. Its rows are written at once: they are those that reports would write."""
    job = server.api.admin.submit(name=f"job {number}", max_steps=STEPS, learning_rate=1e-4 * (number + 1))["id"]
    machine = Machine.launched(server.api, server.provider)
    machine.start(nonce=machine.lease)
    rows: list[dict[str, Any]] = []
    for step in range(1, STEPS + 1):
        found = values(step, STEPS)
        if step % EVAL_EVERY == 0:
            found["eval_loss"] = found["loss"] * 1.1
        found["loss"] += 0.05 * math.sin(step + number)
        rows += [{"name": name, "step": step, "value": value} for name, value in found.items()]
    reading = {"rss_bytes": 2**30 + number, "cpu_percent": 50.0}
    read = [{"at": float(step), "step": step, "reading": reading} for step in range(1, STEPS, READ_EVERY)]
    with server.app.engine.begin() as connection:
        connection.execute(insert(tables.metrics).values(job_id=job, fence=1, at=0.0), rows)
        connection.execute(insert(tables.readings).values(lease_id=machine.lease), read)
    machine.report(STEPS, metrics=[])
    machine.say("release", machine.said("release", step=STEPS, reason="deadline"))
    server.api.admin.post(f"/jobs/{job}:pause")  # the next machine is for the next job
    return job


def _measured(server: PageServer, query: str) -> Iterator[Figure]:
    """The times as a client on the same computer sees them, sending and compressing included."""
    asked = {"page": f"/compare?{query}"}
    asked |= {f"curves of {metric}": f"/compare/curves.json?{query}&metric={metric}" for metric in METRICS}
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60, follow_redirects=True) as client:
        client.get(server.link()).raise_for_status()
        for name, address in asked.items():
            times: list[float] = []
            for _ in range(TIMES):
                began = time.perf_counter()
                client.get(address).raise_for_status()
                times.append(1000 * (time.perf_counter() - began))
            median = statistics.median(times)
            yield Figure(
                name=f"compare of {JOBS} jobs with {STEPS:,} points each, {name}, ms",
                value=round(median, 1),
                bar=f"<= {MAX_MS}",
                ok=median <= MAX_MS,
            )


def _drawn(server: PageServer, query: str, running: Browser) -> Figure:
    """How often a page draws when many updates arrive within one frame."""
    page = running.new_page()
    page.goto(server.link())
    page.wait_for_url(f"{server.url}/")
    page.goto(f"{server.url}/compare?{query}")
    page.wait_for_selector("#overlay canvas")
    script = """(updates) => new Promise((done) => requestAnimationFrame(() => {
      const {compare} = trainhop, before = compare.draws;
      for (let i = 0; i < updates; i++) compare.show({...compare.found});
      requestAnimationFrame(() => requestAnimationFrame(() => done(compare.draws - before)));
    }))"""
    draws = page.evaluate(script, UPDATES)
    page.close()
    return Figure(name=f"drawings for {UPDATES} updates in one frame", value=draws, bar="1", ok=draws == 1)
