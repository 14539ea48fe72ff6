"""`trainhop doctor`: what is missing on this computer, or on machines of others, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from orchestrator.entrypoints.cli import checks
from orchestrator.entrypoints.cli.client import CommandError, Exit, connect, data_folder
from orchestrator.entrypoints.cli.output import JsonFlag, clean, put, put_json, size

app = typer.Typer()

LEAST_FREE_BYTES = 5 << 30
TORCH_TIMEOUT_S = 120.0
_PROBE = (
    "import json, torch; n = torch.cuda.device_count() if torch.cuda.is_available() else 0;"
    "print(json.dumps({'version': torch.__version__, 'gpus': [[torch.cuda.get_device_name(i),"
    " *torch.cuda.get_device_capability(i), torch.cuda.get_device_properties(i).total_memory] for i in range(n)]}))"
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing looked at; `remedy` says what to do unless it is ok."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    remedy: str = ""


@app.command(rich_help_panel="Server")
def doctor(
    context: typer.Context,
    data_dir: Annotated[Path | None, typer.Option(help="The data folder to look at.")] = None,
    kaggle: Annotated[
        bool, typer.Option("--kaggle", help="Try your Kaggle account out, on a machine of its own.")
    ] = False,
    gpu: Annotated[bool, typer.Option("--gpu", help="With --kaggle: on two T4, which takes GPU quota.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Agree that quota is taken.")] = False,
    account: Annotated[str | None, typer.Option(help="With --kaggle: which account; yours, if left out.")] = None,
    colab: Annotated[bool, typer.Option("--colab", help="Print a cell that tries a Colab runtime out.")] = False,
    answer: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --colab: what that cell printed; - for stdin.")
    ] = None,
    drive: Annotated[
        bool, typer.Option("--drive", help="Try an upload to your Google Drive without a sign-in.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a report that names nobody, to post in an issue.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check this computer and the server, or machines of others; exits with 1 if something is broken."""
    if kaggle + colab + drive > 1:
        raise CommandError(Exit.USAGE, "one of --kaggle, --colab and --drive at a time")
    if (gpu or account) and not kaggle:
        raise CommandError(Exit.USAGE, "--gpu and --account go with --kaggle")
    if answer is not None and not colab:
        raise CommandError(Exit.USAGE, "--answer goes with --colab")
    if out is not None and not kaggle and answer is None:
        raise CommandError(Exit.USAGE, "--out goes with --kaggle, or with --colab --answer")
    if kaggle:
        raise typer.Exit(checks.kaggle(connect(context), account=account, gpu=gpu, sure=yes, out=out, as_json=as_json))
    if colab and answer is not None:
        raise typer.Exit(checks.colab_answer(connect(context), answer, out=out, as_json=as_json))
    if colab:
        checks.colab_cell(connect(context))
    elif drive:
        raise typer.Exit(checks.drive(connect(context), as_json=as_json))
    else:
        _this_computer(context, data_dir, as_json=as_json)


def _this_computer(context: typer.Context, data_dir: Path | None, *, as_json: bool) -> None:
    folder = data_folder(data_dir or context.find_root().params.get("data_dir"))
    findings: list[Finding] = []
    for finding in _all(context, folder):
        findings.append(finding)
        if not as_json:
            put(f"{finding.status:<5} {finding.name:<12} {clean(finding.detail)}")
            if finding.remedy:
                put(f"{'':<18} -> {finding.remedy}")
    if as_json:
        put_json([asdict(f) for f in findings])
    raise typer.Exit(Exit.FAILED if any(f.status == "fail" for f in findings) else Exit.OK)


def _all(context: typer.Context, folder: Path) -> Iterator[Finding]:
    checks: list[Callable[[], Finding]] = [
        _python,
        _stack,
        lambda: _folder(folder),
        lambda: _disk(folder),
        lambda: _database(folder),
        lambda: _server(context, folder),
    ]
    yield from (check() for check in checks)
    yield from _torch()


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding(name="python", status="ok", detail=f"{version} at {sys.executable}")


def _stack() -> Finding:
    """The training stack against the set this distribution pins."""
    try:
        requires = importlib.metadata.requires("trainhop") or []
    except importlib.metadata.PackageNotFoundError:
        return Finding(
            name="training", status="warn", detail="trainhop is not installed", remedy="pip install trainhop"
        )
    wanted = [m.groups() for r in requires if (m := re.match(r"([\w-]+)==([\d.]+); extra == ['\"]train['\"]", r))]
    wrong = [
        f"{name} {have or 'missing'} (needs {need})" for name, need in wanted if (have := _installed(name)) != need
    ]
    if wrong:
        remedy = "pip install 'trainhop[train]' where jobs are to run"
        return Finding(name="training", status="warn", detail=", ".join(wrong), remedy=remedy)
    return Finding(name="training", status="ok", detail=", ".join(f"{name} {need}" for name, need in wanted))


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _torch() -> Iterator[Finding]:
    """Imported in a process of its own: a broken build may crash, and this one stays light."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=TORCH_TIMEOUT_S, check=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        yield Finding(
            name="torch", status="warn", detail=f"no answer within {TORCH_TIMEOUT_S:.0f} s", remedy="try again"
        )
        return
    except (subprocess.CalledProcessError, ValueError, IndexError) as error:
        words = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        remedy = "install torch as pytorch.org says for this machine; only machines that train need it"
        yield Finding(name="torch", status="warn", detail=words[-1] if words else "does not start", remedy=remedy)
        return
    yield Finding(name="torch", status="ok", detail=found["version"])
    for name, major, minor, memory in found["gpus"]:
        yield Finding(name="gpu", status="ok", detail=f"{name}, compute {major}.{minor}, {size(memory)}")
    if not found["gpus"]:
        yield Finding(name="gpu", status="ok", detail="none that torch can use; jobs of this computer run on its CPU")


def _folder(folder: Path) -> Finding:
    probe = next(p for p in (folder, *folder.parents) if p.exists())
    if not os.access(probe, os.W_OK | os.X_OK):
        remedy = "choose another with --data-dir or TRAINHOP_DATA_DIR, or change its owner"
        return Finding(name="data folder", status="fail", detail=f"{probe} cannot be written to", remedy=remedy)
    state = "" if folder.exists() else " (made on the first start)"
    return Finding(name="data folder", status="ok", detail=f"{folder}{state}")


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free
    if free < LEAST_FREE_BYTES:
        remedy = "free some space: a 7B model takes 15 GB, a checkpoint of it up to 0.5 GB"
        return Finding(name="disk", status="warn", detail=f"{size(free)} free", remedy=remedy)
    return Finding(name="disk", status="ok", detail=f"{size(free)} free")


def _database(folder: Path) -> Finding:
    url = os.environ.get("TRAINHOP_DATABASE_URL")
    if url is None and not (folder / "trainhop.db").exists():
        return Finding(name="database", status="ok", detail="none yet; made on the first start")
    try:
        from sqlalchemy import create_engine, text

        from orchestrator.adapters.database.migrate import HEAD

        engine = create_engine(url or f"sqlite:///{folder / 'trainhop.db'}")
        with engine.connect() as connection:
            found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        engine.dispose()
    except ImportError as error:
        remedy = "pip install 'trainhop[server]' where the server is to run"
        return Finding(name="database", status="warn", detail=f"{error.name} is not installed", remedy=remedy)
    except Exception as error:  # noqa: BLE001  every database driver has its own errors
        remedy = "check TRAINHOP_DATABASE_URL and that the database runs; a new one is filled by `trainhop up`"
        return Finding(name="database", status="fail", detail=str(error).splitlines()[0], remedy=remedy)
    if found == HEAD:
        return Finding(name="database", status="ok", detail=f"revision {found}")
    remedy = "`trainhop up` brings an older one up to date; a newer one needs a newer trainhop"
    return Finding(name="database", status="warn", detail=f"revision {found}, this version has {HEAD}", remedy=remedy)


def _server(context: typer.Context, folder: Path) -> Finding:
    try:
        client = connect(context)
        me = client.get("/me")
    except CommandError as error:
        if error.code is Exit.UNREACHABLE:
            return _port(folder, error.lines[0])
        return Finding(name="server", status="fail", detail=error.lines[0], remedy="check TRAINHOP_TOKEN")
    return Finding(name="server", status="ok", detail=f"{client.url}, as {me.get('name') or me.get('member')}")


def _port(folder: Path, why: str) -> Finding:
    """No server answers: would one be able to start?"""
    port = int(os.environ.get("TRAINHOP_PORT") or 8642)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            remedy = f"start it with another one: `trainhop up --data-dir {folder} --port 0`"
            return Finding(name="server", status="warn", detail=f"{why}; port {port} is taken", remedy=remedy)
    return Finding(name="server", status="warn", detail=f"{why}; port {port} is free", remedy="`trainhop up`")
