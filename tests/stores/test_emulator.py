"""The emulator under the client libraries that people use against the real service."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from googleapiclient import discovery
from googleapiclient.errors import HttpError
from googleapiclient.http import MediaInMemoryUpload
from oauth2client.client import OAuth2Credentials
from pydrive2.auth import GoogleAuth
from pydrive2.drive import GoogleDrive
from pydrive2.files import ApiRequestError

from orchestrator.adapters.stores.google_drive.client import _document
from tests.emulators.drive import Drive, Rule
from tests.emulators.drive.state import Problem


def sign_in(drive: Drive) -> GoogleAuth:
    login = drive.authorized_user()
    auth = GoogleAuth(
        settings_file="", settings={"client_config_backend": "file", "save_credentials": False}, http_timeout=30
    )
    auth.credentials = OAuth2Credentials(
        None, login["client_id"], login["client_secret"], login["refresh_token"], None, login["token_uri"], "test"
    )
    auth.http = auth.Get_Http_Object()
    auth.thread_local.http = auth.http
    auth.service = discovery.build_from_document(_document(f"{drive.url}/"), http=auth.http)
    return auth


@pytest.fixture
def auth(drive: Drive) -> Iterator[GoogleAuth]:
    auth = sign_in(drive)
    yield auth
    auth.http.close()


def make(google: GoogleDrive, name: str, text: str, **more: Any) -> Any:
    file = google.CreateFile({"title": name, **more})
    file.SetContentString(text)
    file.Upload()
    return file


def test_pydrive_uploads_lists_and_downloads(auth: GoogleAuth) -> None:
    google = GoogleDrive(auth)
    folder = google.CreateFile({"title": "folder", "mimeType": "application/vnd.google-apps.folder"})
    folder.Upload()
    for number in range(5):
        make(google, f"file {number}", f"text {number}", parents=[{"id": folder["id"]}])
    pages = google.ListFile({"q": f"'{folder['id']}' in parents and trashed=false", "maxResults": 2})
    found = [file for page in pages for file in page]
    assert [f["title"] for f in found] == [f"file {n}" for n in range(5)]
    assert found[3].GetContentString() == "text 3"
    assert found[3]["md5Checksum"] == hashlib.md5(b"text 3").hexdigest()
    assert len(google.ListFile({"q": "title = 'file 1' and mimeType != 'x/y'"}).GetList()) == 1


def test_names_are_not_unique_and_searches_by_name_lag(auth: GoogleAuth, drive: Drive) -> None:
    google = GoogleDrive(auth)
    drive.contents.lag = 1
    made = [make(google, "same", text) for text in ("a", "b")]
    assert made[0]["id"] != made[1]["id"]
    assert google.ListFile({"q": "title='same'"}).GetList() == []
    assert len(google.ListFile({"q": "'root' in parents"}).GetList()) == 2
    assert len(google.ListFile({"q": "title='same'"}).GetList()) == 2


def test_compare_and_swap(auth: GoogleAuth) -> None:
    google = GoogleDrive(auth)
    file = make(google, "lease.json", "{}")
    etag = file["etag"]
    request = auth.service.files().update(fileId=file["id"], body={"title": "changed"})
    request.headers["If-Match"] = etag
    assert request.execute()["etag"] != etag
    media = MediaInMemoryUpload(b"new", mimetype="text/plain", resumable=False)
    request = auth.service.files().update(fileId=file["id"], body={}, media_body=media)
    request.headers["If-Match"] = etag
    with pytest.raises(HttpError) as stale:
        request.execute()
    assert stale.value.resp.status == 412
    assert google.CreateFile({"id": file["id"]}).GetContentString() == "{}"


def test_trash_takes_space_until_it_is_emptied(auth: GoogleAuth, drive: Drive) -> None:
    file = make(GoogleDrive(auth), "a", "x" * 1000)
    file.Trash()
    about = auth.service.about().get().execute()
    assert (about["quotaBytesUsed"], about["quotaBytesUsedInTrash"]) == ("1000", "1000")
    auth.service.files().emptyTrash().execute()
    assert auth.service.about().get().execute()["quotaBytesUsed"] == "0"


def test_a_full_drive_and_rate_limits_speak_googles_way(auth: GoogleAuth, drive: Drive) -> None:
    drive.contents.limit = 10
    with pytest.raises(ApiRequestError) as full:
        make(GoogleDrive(auth), "a", "x" * 1000)
    assert full.value.GetField("reason") == "storageQuotaExceeded"
    drive.rules.add(Rule("GET /drive/v2/about", status=403, reason="userRateLimitExceeded"))
    with pytest.raises(HttpError, match="userRateLimitExceeded"):
        auth.service.about().get().execute()


def test_ids_are_used_once(auth: GoogleAuth) -> None:
    ident = auth.service.files().generateIds(maxResults=1).execute()["ids"][0]
    auth.service.files().insert(body={"id": ident, "title": "a"}).execute()
    for used, status in ((ident, 409), ("made-up", 400)):
        with pytest.raises(HttpError) as refused:
            auth.service.files().insert(body={"id": used, "title": "a"}).execute()
        assert refused.value.resp.status == status
    auth.service.files().delete(fileId=ident).execute()
    with pytest.raises(HttpError, match="409"):
        auth.service.files().insert(body={"id": ident, "title": "a"}).execute()


def test_chunks_have_to_fit(auth: GoogleAuth, drive: Drive) -> None:
    def put(span: str, content: bytes = b"") -> httpx.Response:
        return httpx.put(url, content=content, headers={"Content-Range": f"bytes {span}"}, trust_env=False)

    token = auth.credentials.get_access_token(auth.http).access_token
    headers = {"Authorization": f"Bearer {token}", "X-Upload-Content-Length": "300000"}
    opened = httpx.post(
        f"{drive.url}/upload/drive/v2/files?uploadType=resumable", json={"title": "a"}, headers=headers, trust_env=False
    )
    url = opened.headers["location"]
    assert put("0-99999/300000", b"x" * 100_000).status_code == 400
    assert put("*/300000").headers.get("range") is None
    assert put("0-262143/300000", b"x" * 262_144).headers["range"] == "bytes=0-262143"
    assert put("0-262143/300000", b"x" * 262_144).headers["range"] == "bytes=0-262143"
    assert put("262144-262145/262146", b"xx").status_code == 400
    done = put("262144-299999/300000", b"x" * 37_856)
    assert done.json()["fileSize"] == "300000"
    assert put("*/300000").json()["id"] == done.json()["id"]


def test_everything_outlives_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "drive"
    with Drive(folder) as before:
        file = before.contents.insert({"title": "a"}, b"content")
        session = before.contents.open_session({"title": "b"}, None)
        gone = before.contents.insert({"title": "gone"}, b"x")
        before.contents.delete(gone.id)
    with Drive(folder) as after:
        assert after.bytes_of(after.contents.get(file.id)) == b"content"
        assert [f.title for f in after.files()] == ["a"]
        with pytest.raises(Problem):
            after.contents.insert({"id": gone.id, "title": "again"}, b"x")
        url = f"{after.url}/upload/drive/v2/files?upload_id={session.id}"
        assert httpx.put(url, content=b"later", trust_env=False).json()["title"] == "b"
