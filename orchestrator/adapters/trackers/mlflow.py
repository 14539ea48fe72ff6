"""MLflow: one run per job, found again by a tag. The server of MLflow is a person's own, so its address is needed."""

from __future__ import annotations

import os
from importlib import import_module
from itertools import islice
from typing import Any

from orchestrator.adapters.trackers.run import DEFAULT_PROJECT, Login, Point, Run, set_it

LIBRARY = "mlflow"
TAG = "trainhop.job"
MAX_AT_ONCE = 1_000
"""Metrics of one request, of which the server takes all or none."""
MAX_PARAMS, MAX_PARAM = 100, 500
"""Parameters of one request, and characters of one."""
_STATES = {"succeeded": "FINISHED", "failed": "FAILED", "cancelled": "KILLED"}


def login_fault(login: Login | None) -> str:
    """It needs an address. A folder or a database of this server is refused."""
    if login is None:
        return set_it("mlflow", "MLflow needs the address of its server.")
    if not login.url.startswith(("http://", "https://")):
        return "The address of an MLflow server begins with https:// or http://."
    return ""


class MlflowRun:
    """A run over MLflow's REST API."""

    def __init__(self, run: Run) -> None:
        variables = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
        variables |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ENABLE_ASYNC_LOGGING": "false"}
        name, colon, password = run.key.partition(":")
        if colon:
            variables |= {"MLFLOW_TRACKING_USERNAME": name, "MLFLOW_TRACKING_PASSWORD": password}
        elif run.key:
            variables["MLFLOW_TRACKING_TOKEN"] = run.key
        os.environ.update(variables)
        self._client: Any = import_module("mlflow").MlflowClient(tracking_uri=run.url)
        self._url, self._run = run.url, run
        self._experiment = self._find_experiment(run.project or DEFAULT_PROJECT)
        self._found = self._find() or self._create()
        self._id = self._found.info.run_id
        # `to_proto` is the public way to the last step of each metric.
        latest = self._found.data.to_proto().metrics
        self._last = max((metric.step for metric in latest), default=-1)

    def _find_experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        try:
            return self._client.create_experiment(name)
        except import_module("mlflow.exceptions").MlflowException:  # somebody else was faster
            found = self._client.get_experiment_by_name(name)
            if found is None:
                raise
            return found.experiment_id

    def _find(self) -> Any:
        mine = f"tags.`{TAG}` = '{self._run.id}'"
        found = self._client.search_runs([self._experiment], filter_string=mine, max_results=1)
        return found[0] if found else None

    def _create(self) -> Any:
        tags = {TAG: self._run.id, "mlflow.source.name": "trainhop"}
        start = int(self._run.created_at * 1000)
        return self._client.create_run(self._experiment, start_time=start, tags=tags, run_name=self._run.name)

    @property
    def last_step(self) -> int:
        return self._last

    def write(self, points: list[Point]) -> None:
        entities: Any = import_module("mlflow.entities")
        known = self._found.data.params
        missing = ((k, str(v)[:MAX_PARAM]) for k, v in self._run.config.items() if k not in known)
        params = [entities.Param(k, v) for k, v in missing]
        for first in range(0, len(params), MAX_PARAMS):
            self._client.log_batch(self._id, params=params[first : first + MAX_PARAMS])
        batch = list[Any]()
        for step, at, values in points:
            metrics = [entities.Metric(key, value, int(at * 1000), step) for key, value in sorted(values.items())]
            if len(batch) + len(metrics) > MAX_AT_ONCE:
                self._client.log_batch(self._id, metrics=batch)
                batch = []
            batch += islice(metrics, MAX_AT_ONCE)
        if batch:
            self._client.log_batch(self._id, metrics=batch)

    def close(self, state: str) -> str:
        self._client.set_tag(self._id, "mlflow.note.content", self._run.notes)
        if state in _STATES:
            self._client.set_terminated(self._id, status=_STATES[state])
        elif self._found.info.status != "RUNNING":
            self._client.update_run(self._id, status="RUNNING")
        return f"{self._url}/#/experiments/{self._experiment}/runs/{self._id}"


def open_run(run: Run) -> MlflowRun:
    """Find the job's run, or make it."""
    return MlflowRun(run)
