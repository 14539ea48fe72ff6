"""The examples of a deployment: what their programs say of them, where these are installed."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from orchestrator.config import Settings

DEPLOY = Path(__file__).parents[2] / "examples" / "deploy"
SETTINGS = Settings(data_dir=Path("/nowhere"))


def _unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # pyright: ignore[reportAttributeAccessIssue]
    parser.read(DEPLOY / "trainhop.service")
    return parser


def test_the_unit_keeps_workers_and_its_folder() -> None:
    service = _unit()["Service"]
    assert service["KillMode"] == "process", "a restart of the server ends no worker"
    assert service["StateDirectoryMode"] == service["UMask"].replace("0077", "0700")
    text = (DEPLOY / "trainhop.service").read_text()
    assert f"TRAINHOP_DATA_DIR=/var/lib/{service['StateDirectory']}" in text


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    text = (DEPLOY / "trainhop.service").read_text()
    unit = tmp_path / "trainhop.service"
    unit.write_text(text.replace("/opt/trainhop/bin/trainhop", sys.executable).replace("User=trainhop", "User=root"))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (done.returncode, [line for line in done.stderr.splitlines() if "trainhop" in line]) == (0, [])


@pytest.mark.parametrize("name", ["nginx.conf", "Caddyfile"])
def test_a_proxy_lets_uploads_and_event_streams_through(name: str) -> None:
    """Guard: nginx refuses uploads above 1 MiB by default, and holds streams of events back."""
    text = (DEPLOY / name).read_text()
    assert f"127.0.0.1:{SETTINGS.port}" in text
    size = re.search(r"(?:client_max_body_size|max_size) (\d+)(?:g;|GiB)", text)
    assert size is not None
    assert int(size[1]) << 30 >= SETTINGS.max_upload_bytes
    assert "proxy_buffering off" in text or "flush_interval -1" in text
    assert text.count("{") == text.count("}")
    assert {"TRAINHOP_PUBLIC_URL", "TRAINHOP_TRUSTED_PROXIES"} <= set(re.findall(r"TRAINHOP_[A-Z_]+", text))


@pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx")
def test_nginx_accepts_its_file(tmp_path: Path) -> None:
    text = re.sub(r"listen 443 ssl|ssl_certificate.*\n", lambda m: "listen 443" if "listen" in m[0] else "\n", NGINX)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    own = "access_log off;" + "".join(f"{kind}_temp_path {tmp_path}/{kind};" for kind in kinds)  # the usual need root
    (tmp_path / "nginx.conf").write_text(f"pid {tmp_path}/pid;\nevents {{}}\nhttp {{\n{own}\n{text}\n}}\n")
    done = subprocess.run(
        ["nginx", "-t", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


NGINX = (DEPLOY / "nginx.conf").read_text()


@pytest.mark.skipif(shutil.which("caddy") is None, reason="needs caddy")
def test_caddy_accepts_its_file() -> None:
    command = ["caddy", "adapt", "--config", str(DEPLOY / "Caddyfile"), "--adapter", "caddyfile"]
    subprocess.run(command, capture_output=True, check=True)


def test_compose_backs_up_what_the_docs_say() -> None:
    service = yaml.safe_load((DEPLOY.parents[1] / "docker-compose.yml").read_text())["services"]["server"]
    assert "data:/data" in service["volumes"]
    assert service["environment"]["TRAINHOP_DATABASE_URL"].endswith("sqlite:////data/trainhop.db}")
