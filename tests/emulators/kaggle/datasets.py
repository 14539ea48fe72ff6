"""Blobs and datasets: resumable uploads, versions, a delay until READY, downloads, delete."""

from __future__ import annotations

import re
import secrets
import shutil
import zipfile
from typing import Any

from tests.emulators.kaggle.state import Blob, Dataset, Person, RefusedError, World


class Datasets:
    """One method per remote call. A new version is READY once its status was asked `processing_polls` times."""

    def __init__(self, world: World, *, processing_polls: int = 1) -> None:
        self._world = world
        self.processing_polls = processing_polls

    def StartBlobUpload(self, person: Person, said: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        if said.get("type") != "DATASET" or not said.get("name"):
            raise RefusedError(400, "type and name are needed")
        token = secrets.token_urlsafe(16)
        path = self._world.folder / "blobs" / token
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self._world.blobs[token] = Blob(
            owner=person.name, name=str(said["name"]), size=int(said.get("contentLength", 0)), path=path
        )
        return {"token": token, "createUrl": f"/upload/{token}"}

    def CreateDataset(self, person: Person, said: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        owner, slug, title = said.get("ownerSlug"), str(said.get("slug")), str(said.get("title"))
        if owner != person.name:
            raise RefusedError(403, "Permission 'datasets.create' was denied")
        if not (6 <= len(title) <= 50 and re.fullmatch(r"[a-z0-9-]{3,50}", slug)):
            return {"error": "The dataset title must be between 6 and 50 characters"}
        if (person.name, slug) in self._world.datasets:
            return {
                "error": f'The requested title "{title}" is already in use by a dataset. Please choose another title.'
            }
        self._store(person, slug, title, said, version=1, private=bool(said.get("isPrivate")))
        return {
            "ref": f"/{person.name}/{slug}",
            "url": f"https://www.kaggle.com/datasets/{person.name}/{slug}",
            "status": "ok",
        }

    def CreateDatasetVersion(self, person: Person, said: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        old = self._world.dataset(person, said.get("ownerSlug", ""), said.get("datasetSlug", ""))
        self._store(person, old.slug, old.title, said.get("body", {}), version=old.version + 1, private=old.private)
        if said.get("body", {}).get("deleteOldVersions"):
            shutil.rmtree(old.folder, ignore_errors=True)
        return {"ref": f"/{person.name}/{old.slug}", "status": "ok"}

    def _store(
        self, person: Person, slug: str, title: str, said: dict[str, Any], *, version: int, private: bool
    ) -> None:
        folder = self._world.folder / "datasets" / person.name / slug / secrets.token_hex(4)
        folder.mkdir(parents=True)
        for token in [str(f.get("token")) for f in said.get("files", [])]:
            blob = self._world.blobs.get(token)
            if blob is None or blob.owner != person.name or blob.path.stat().st_size != blob.size:
                raise RefusedError(400, f"Blob {token} is not uploaded")
            shutil.copyfile(blob.path, folder / re.sub(r"[^A-Za-z0-9_.-]", "_", blob.name))
        self._world.datasets[person.name, slug] = Dataset(
            owner=person.name,
            slug=slug,
            title=title,
            private=private,
            folder=folder,
            version=version,
            polls_left=self.processing_polls,
        )

    def GetDatasetStatus(self, person: Person, said: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        dataset = self._world.dataset(person, said.get("ownerSlug", ""), said.get("datasetSlug", ""))
        if dataset.status == "BLOBS_RECEIVED" and dataset.polls_left <= 0:
            dataset.status = "READY"
        dataset.polls_left -= 1
        return {"status": dataset.status}

    def ListDatasets(self, person: Person, said: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        size, page = int(said.get("pageSize") or 20), int(said.get("page") or 1)
        wanted = str(said.get("search") or "")
        mine = [d for d in self._world.datasets.values() if d.owner == person.name and wanted in d.slug]
        listed = [
            {"ref": f"{d.owner}/{d.slug}", "title": d.title, "isPrivate": d.private, "currentVersionNumber": d.version}
            for d in mine
        ]
        return {"datasets": listed[(page - 1) * size : page * size]}

    def DeleteDataset(self, person: Person, said: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        dataset = self._world.dataset(person, said.get("ownerSlug", ""), said.get("datasetSlug", ""))
        del self._world.datasets[dataset.owner, dataset.slug]
        shutil.rmtree(dataset.folder, ignore_errors=True)
        return {}

    def DownloadDataset(self, person: Person, said: dict[str, Any]) -> str:  # noqa: N802
        """The path that the caller is redirected to: one file, or all as a zip."""
        dataset = self._world.dataset(person, said.get("ownerSlug", ""), said.get("datasetSlug", ""))
        if name := said.get("fileName"):
            path = dataset.folder / str(name)
            if path.parent != dataset.folder or not path.is_file():
                raise RefusedError(404, "Not found")
            return self._world.link(path)
        archive = self._world.folder / "zips" / f"{secrets.token_hex(8)}.zip"
        archive.parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(archive, "w") as file:
            for path in dataset.folder.iterdir():
                file.write(path, path.name)
        return self._world.link(archive)
