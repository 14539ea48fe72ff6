"""The kernels service: push, status, outputs, cancel, delete, list, quota."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.emulators.kaggle.sessions import Sessions
from tests.emulators.kaggle.state import (
    CPU_SESSIONS,
    GPU_SESSIONS,
    MAX_SESSION_S,
    Kernel,
    Person,
    RefusedError,
    World,
    slugify,
)

PAGE = 20
RETIRED = {"NvidiaTeslaP100": "NvidiaTeslaT4"}


class Kernels:
    """One method per remote call, from the request's JSON to the answer's."""

    def __init__(self, world: World, sessions: Sessions) -> None:
        self._world, self._sessions = world, sessions

    def SaveKernel(self, person: Person, said: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        owner, _, slug = str(said.get("slug", "")).partition("/")
        title = str(said.get("newTitle") or slug)
        gpu = bool(said.get("enableGpu")) or said.get("machineShape", "").startswith("Nvidia")
        if (said.get("enableInternet", True) or gpu) and not person.phone_verified:
            raise RefusedError(403, "Permission 'kernelSessions.enableInternet' was denied")
        if owner != person.name or len(slug) < 5 or slugify(title) != slug:
            return {"error": "Notebook not found"}
        with self._world.lock:
            if refusal := self._full(person, gpu=gpu):
                return {"error": refusal}
            before = self._world.kernels.get((owner, slug))
            if before is None and any(k.owner == owner and k.title == title for k in self._world.kernels.values()):
                raise RefusedError(409, "title already exists")
            kernel = self._kernel(person, slug, title, said, gpu=gpu, version=before.version + 1 if before else 1)
            self._world.kernels[owner, slug] = kernel
        self._sessions.start(kernel)
        unknown = [s for s in kernel.datasets if tuple(s.split("/")) not in self._world.datasets]
        nowhere = [s for s in kernel.kernels if tuple(s.split("/")) not in self._world.kernels]
        return {
            "ref": f"/code/{owner}/{slug}",
            "url": f"https://www.kaggle.com/code/{owner}/{slug}",
            "versionNumber": kernel.version,
            "kernelId": kernel.id,
            "invalidDatasetSources": unknown,
            "invalidTags": [],
            "invalidCompetitionSources": said.get("competitionDataSources", []),
            "invalidKernelSources": nowhere,
            "invalidModelSources": said.get("modelDataSources", []),
        }

    def _full(self, person: Person, *, gpu: bool) -> str:
        cap, kind = (GPU_SESSIONS, "GPU") if gpu else (CPU_SESSIONS, "CPU")
        if len(self._world.live(person, gpu=gpu)) >= cap:
            return f"Maximum batch {kind} session count of {cap} reached."
        if gpu and person.used_s + self._world.reserved_s(person) >= person.gpu_hours * 3600:
            return f"Maximum weekly GPU quota of {person.gpu_hours:.2f} hours reached."
        return ""

    def _kernel(
        self, person: Person, slug: str, title: str, said: dict[str, Any], *, gpu: bool, version: int
    ) -> Kernel:
        shape = str(said.get("machineShape", ""))
        number = self._world.new_id()
        return Kernel(
            id=number,
            session=self._world.new_id(),
            owner=person.name,
            slug=slug,
            title=title,
            source=str(said.get("text", "")),
            gpu=gpu,
            machine_shape=RETIRED.get(shape, shape),
            internet=bool(said.get("enableInternet", True)),
            private=bool(said.get("isPrivate", True)),
            datasets=[str(s) for s in said.get("datasetDataSources", [])],
            kernels=[str(s) for s in said.get("kernelDataSources", [])],
            timeout_s=min(float(said.get("sessionTimeoutSeconds") or MAX_SESSION_S), MAX_SESSION_S),
            root=self._world.folder / "kernels" / str(number),
            version=version,
        )

    def GetKernelSessionStatus(self, person: Person, said: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        kernel = self._world.kernel(person, said.get("userName", ""), said.get("kernelSlug", ""))
        return {"status": kernel.said_status} | ({"failureMessage": kernel.failure} if kernel.failure else {})

    def ListKernelSessionOutput(self, person: Person, said: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        kernel = self._world.kernel(person, said.get("userName", ""), said.get("kernelSlug", ""))
        if kernel.said_status == "RUNNING" or kernel.pid is not None:
            return {"files": [], "log": ""}
        start, size = int(said.get("pageToken") or 0), min(int(said.get("pageSize") or PAGE), 200)
        files = list(kernel.outputs())
        page = [{"fileName": name, "url": self._world.link(path)} for name, path in files[start : start + size]]
        more = {"nextPageToken": str(start + size)} if start + size < len(files) else {}
        return {"files": page, "log": json.dumps(kernel.events[: self._world.kept_events])} | more

    def DeleteKernel(self, person: Person, said: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        kernel = self._world.kernel(person, said.get("userName", ""), said.get("kernelSlug", ""))
        with self._world.lock:
            self._world.kernels.pop((kernel.owner, kernel.slug), None)
        self._sessions.delete(kernel)
        return {}

    def CancelKernelSession(self, person: Person, said: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        number = int(said.get("kernelSessionId") or 0)
        mine = [k for k in self._world.kernels.values() if k.owner == person.name and k.session == number]
        if not mine:
            raise RefusedError(403, "Permission 'kernelSessions.cancel' was denied")
        if not mine[0].is_live:
            return {"errorMessage": "The session has ended"}
        self._sessions.cancel(mine[0])
        return {}

    def ListKernels(self, person: Person, said: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        size, page = int(said.get("pageSize") or PAGE), int(said.get("page") or 1)
        wanted = str(said.get("search") or "")
        mine = [k for k in self._world.kernels.values() if k.owner == person.name and wanted in k.slug]
        mine.sort(key=lambda k: k.wall, reverse=True)
        return {"kernels": [_metadata(k) for k in mine[(page - 1) * size : page * size]]}

    def GetKernel(self, person: Person, said: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        kernel = self._world.kernel(person, said.get("userName", ""), said.get("kernelSlug", ""))
        blob = {"source": kernel.source, "language": "python", "kernelType": "script", "slug": kernel.slug}
        return {"metadata": _metadata(kernel), "blob": blob}

    def GetAcceleratorQuotaStatistics(self, person: Person, said: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        now = datetime.now(UTC)
        saturday = (now + timedelta(days=(5 - now.weekday()) % 7 or 7)).date()
        reserved = self._world.reserved_s(person)
        return {
            "quotaRefreshTime": f"{saturday}T00:00:00Z",
            "gpuQuota": {
                "timeUsed": f"{person.used_s:.3f}s",
                "timeReserved": f"{reserved:.3f}s",
                "totalTimeAllowed": f"{person.gpu_hours * 3600:.3f}s",
                "hasEverRun": person.used_s > 0,
            },
            "tpuQuota": {"timeUsed": "0s", "timeReserved": "0s", "totalTimeAllowed": "72000s"},
        }


def log_stream(kernel: Kernel) -> Iterator[str]:
    """Server-sent events of a running kernel, from its first line to the end mark."""
    place = 0
    while True:
        with kernel.changed:
            if len(kernel.events) == place and not _is_over(kernel):
                kernel.changed.wait(0.5)
            fresh, over = kernel.events[place:], _is_over(kernel)
        place += len(fresh)
        for event in fresh:
            yield f"data: {json.dumps(event)}\n\n"
        if over and place == len(kernel.events):
            yield "data: END_OF_LOG\n\n"
            return


def _is_over(kernel: Kernel) -> bool:
    return kernel.deleted or (kernel.pid is None and not kernel.is_live)


def _metadata(kernel: Kernel) -> dict[str, Any]:
    return {
        "id": kernel.id,
        "ref": f"{kernel.owner}/{kernel.slug}",
        "title": kernel.title,
        "author": kernel.owner,
        "slug": kernel.slug,
        "lastRunTime": datetime.fromtimestamp(kernel.wall, UTC).isoformat(timespec="milliseconds")[:23] + "Z",
        "language": "python",
        "kernelType": "script",
        "isPrivate": kernel.private,
        "enableGpu": kernel.gpu,
        "enableInternet": kernel.internet,
        "datasetDataSources": kernel.datasets,
        "kernelDataSources": kernel.kernels,
        "machineShape": kernel.machine_shape,
        "currentVersionNumber": kernel.version,
    }
