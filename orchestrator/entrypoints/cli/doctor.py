"""`trainhop doctor`: checks of this computer, the server and the providers, with remedies."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from orchestrator.entrypoints.cli import checks
from orchestrator.entrypoints.cli.client import CommandError, Exit, connect
from orchestrator.entrypoints.cli.output import JsonFlag, clean, put, put_json, size
from trainhop.connection import data_folder
from trainhop.errors import Error

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
    """The result of one check. `remedy` is set unless the status is ok."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    remedy: str = ""


class DoctorCommand(TyperCommand):
    """Takes `--NAME` for `--check NAME`, for every installed provider."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See typer."""
        from importlib.metadata import entry_points

        names = {f"--{point.name}": point.name for point in entry_points(group="trainhop.providers")}
        spelled = [part for arg in args for part in (("--check", names[arg]) if arg in names else (arg,))]
        return super().parse_args(ctx, spelled)


@app.command(cls=DoctorCommand, rich_help_panel="Server")
def doctor(
    context: typer.Context,
    data_dir: Annotated[Path | None, typer.Option(help="The data folder to check.")] = None,
    check: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PROVIDER",
            help="Check the provider's machines, on your account or by a cell that you run. Short form: --PROVIDER.",
        ),
    ] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="With --check: check a GPU, which uses GPU quota.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Confirm the use of quota.")] = False,
    account: Annotated[str | None, typer.Option(help="With --check: the account to check (default: yours).")] = None,
    answer: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --check: a file with the cell's output, or - for stdin.")
    ] = None,
    drive: Annotated[bool, typer.Option("--drive", help="Check uploads to Google Drive without a sign-in.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Save a report without personal data, to attach to an issue.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check this computer and the server, or a provider. The exit code is 1 if a check fails."""
    chosen = check or []
    if len(chosen) + drive > 1:
        raise CommandError(Exit.USAGE, "Only one check can run at a time. Use one --check PROVIDER or --drive.")
    if not chosen and (gpu or account or answer is not None or out is not None):
        raise CommandError(Exit.USAGE, "--gpu, --account, --answer and --out need --check PROVIDER.")
    if chosen:
        order = checks.Order(provider=chosen[0], account=account, gpu=gpu, sure=yes, answer=answer, out=out)
        raise typer.Exit(checks.provider(connect(context), order, as_json=as_json))
    if drive:
        raise typer.Exit(checks.drive(connect(context), as_json=as_json))
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
        *(partial(_extra, name) for name in EXTRAS),
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


EXTRAS = {
    "server": "`trainhop up` needs it",
    "kaggle": "for accounts at Kaggle",
    "drive": "for checkpoints in Google Drive",
    "train": "to train on this computer",
}
"""What each extra of the installation is for."""


def _extra(name: str) -> Finding:
    """Compare the packages of an extra with those that are installed here."""
    from worker.shared.installation import SERVER, install_line, missing_packages

    missing = missing_packages(name)
    shown = "training" if name == "train" else f"extra {name}"
    if not missing:
        return Finding(name=shown, status="ok", detail="installed")
    detail = f"{EXTRAS[name]}; missing: {', '.join(missing)}"
    return Finding(name=shown, status="warn", detail=detail, remedy=install_line(*SERVER, name))


def _torch() -> Iterator[Finding]:
    """Import torch in a child process: a broken build may crash, and the import is slow."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=TORCH_TIMEOUT_S, check=True
        )
        facts = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        yield Finding(
            name="torch", status="warn", detail=f"no answer within {TORCH_TIMEOUT_S:.0f} s", remedy="try again"
        )
        return
    except (subprocess.CalledProcessError, ValueError, IndexError) as error:
        words = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        from worker.shared.installation import SERVER, install_line

        remedy = install_line(*SERVER, "train", torch=True)
        yield Finding(
            name="torch", status="warn", detail=words[-1] if words else "could not be imported", remedy=remedy
        )
        return
    yield Finding(name="torch", status="ok", detail=facts["version"])
    for name, major, minor, memory in facts["gpus"]:
        yield Finding(name="gpu", status="ok", detail=f"{name}, compute {major}.{minor}, {size(memory)}")
    if not facts["gpus"]:
        yield Finding(name="gpu", status="ok", detail="torch finds none, so local jobs run on the CPU")


def _folder(folder: Path) -> Finding:
    probe = next(p for p in (folder, *folder.parents) if p.exists())
    if not os.access(probe, os.W_OK | os.X_OK):
        remedy = "choose another folder with --data-dir or TRAINHOP_DATA_DIR, or change its owner"
        return Finding(name="data folder", status="fail", detail=f"{probe} is not writable", remedy=remedy)
    state = "" if folder.exists() else " (created on the first start)"
    return Finding(name="data folder", status="ok", detail=f"{folder}{state}")


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free
    if free < LEAST_FREE_BYTES:
        remedy = "free some space: a 7B model needs 15 GB, and each of its checkpoints up to 0.5 GB"
        return Finding(name="disk", status="warn", detail=f"{size(free)} free", remedy=remedy)
    return Finding(name="disk", status="ok", detail=f"{size(free)} free")


def _database(folder: Path) -> Finding:
    url = os.environ.get("TRAINHOP_DATABASE_URL")
    if url is None and not (folder / "trainhop.db").exists():
        return Finding(name="database", status="ok", detail="created on the first start")
    try:
        from sqlalchemy import create_engine, text

        from orchestrator.adapters.database.migrate import HEAD

        engine = create_engine(url or f"sqlite:///{folder / 'trainhop.db'}")
        with engine.connect() as connection:
            revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        engine.dispose()
    except ImportError as error:
        from worker.shared.installation import SERVER, install_line

        remedy = install_line(*SERVER)
        return Finding(name="database", status="warn", detail=f"{error.name} is not installed", remedy=remedy)
    except Exception as error:  # noqa: BLE001  every database driver has its own errors
        remedy = "check TRAINHOP_DATABASE_URL and that the database is running. `trainhop up` creates the tables"
        return Finding(name="database", status="fail", detail=str(error).splitlines()[0], remedy=remedy)
    if revision == HEAD:
        return Finding(name="database", status="ok", detail=f"revision {revision}")
    remedy = "`trainhop up` migrates an older database. A newer one needs a newer trainhop"
    return Finding(
        name="database", status="warn", detail=f"revision {revision}, this version needs {HEAD}", remedy=remedy
    )


def _server(context: typer.Context, folder: Path) -> Finding:
    try:
        client = connect(context)
        me = client.get("/me")
    except Error as error:
        if error.reason == "unreachable":
            return _port(folder, error.lines[0])
        return Finding(name="server", status="fail", detail=error.lines[0], remedy="check TRAINHOP_TOKEN")
    return Finding(name="server", status="ok", detail=f"{client.url}, as {me.get('name') or me.get('member')}")


def _port(folder: Path, why: str) -> Finding:
    """Without a running server: check whether one can start."""
    port = int(os.environ.get("TRAINHOP_PORT") or 8642)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            remedy = f"start it on another port: `trainhop up --data-dir {shlex.quote(str(folder))} --port 0`"
            return Finding(name="server", status="warn", detail=f"{why}; port {port} is taken", remedy=remedy)
    from worker.shared.installation import missing_modules

    can_start = not missing_modules(("pydantic_settings", "sqlalchemy", "uvicorn"))
    remedy = "`trainhop up`" if can_start else "install the extra server, as above"
    return Finding(name="server", status="warn", detail=f"{why}; port {port} is free", remedy=remedy)
