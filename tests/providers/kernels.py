"""What tests of the Kaggle driver share: accounts, launches with files to bring, a worker of a few lines, waiting."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from orchestrator.domain.accounts import Account
from orchestrator.ports.providers import Handle, LaunchRequest, Liveness
from orchestrator.providers.colab import ColabProvider
from orchestrator.providers.colab.settings import ColabSettings
from orchestrator.providers.kaggle.kernel import packed
from orchestrator.testing.environments import OpenVault, driver_env
from tests.emulators.colab import Colab
from tests.helpers.waiting import first_true
from worker.agent import boot
from worker.shared.job_spec import JobSpec
from worker.shared.messages import Assignment, Grant, GrantKind

DATA, CHECKPOINT = b'{"text": "a row of training data"}\n', b"a checkpoint" * 1000
_NUMBERS = count(1)

LIGHT = """
import json, pathlib, sys, time
ticket = json.loads(pathlib.Path(sys.argv[1]).read_text())
given = ticket["assignment"]
keep = pathlib.Path(given["keep_dir"]) if given else None
"""


def kaggle_account(name: str, credentials: str | None = None, **config: Any) -> Account:
    """An account whose user name, id and token follow from `name`."""
    return Account(
        id=f"account-{name}",
        provider="kaggle",
        member_id=f"member-{name}",
        name=f"{name}-kaggle",
        config={"username": name, **config},
        credentials=OpenVault().seal(credentials or f"KGAT_{name}"),
        consented_at=1.0,
        created_at=0.0,
    )


def colab_account(colab: Colab, **config: Any) -> Account:
    """The emulated person's account, in the mode in which machines are started for them."""
    return Account(
        id="account-colab",
        provider="colab",
        member_id="member-alice",
        name="alice-colab",
        config={"mode": "cli", **config},
        credentials=OpenVault().seal(json.dumps(colab.authorized_user())),
        consented_at=1.0,
        created_at=0.0,
    )


def colab_provider(
    colab: Colab, folder: Path, python: str | None = None, *, code: str = "", **more: Any
) -> ColabProvider:
    """A driver that speaks to the emulator through the official client, by default in the emulator's own Python.

    Its machines are brought a worker that runs `code`.
    """
    settings = ColabSettings(python=python or colab.python, endpoint=colab.endpoint)
    env = driver_env(folder / "colab", **{"settings": settings, "endpoint": colab.endpoint} | more)
    provider = ColabProvider(env, fresh_s=0.0, poll_s=0.1, worker=lambda _: light_wheel(code))
    if not colab.python:
        provider.bridge.ready_s = 0.0  # of machines in name only none will ever answer

    return provider


def with_worker(source: str, code: str) -> str:
    """A script for Kaggle with a worker of a few lines in place of the real one."""
    light = packed(light_wheel(code))
    return re.sub(r'WORKER = """\n.*?"""', f'WORKER = """\n{light}"""', source, count=1, flags=re.DOTALL)


def with_changes(source: str, **changes: Any) -> str:
    """A script for Kaggle that carries something else."""
    return source.replace("main(json.loads(CARRIED), WORKER)", f"main(json.loads(CARRIED) | {changes!r}, WORKER)")


def light_wheel(code: str) -> bytes:
    """A `worker` package whose main module runs `code` after `LIGHT`.

    What starts it is real; its installer finds nothing to do.
    """
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("worker/__init__.py", "")
        root = Path(boot.__file__).parents[1]
        for path in (*root.glob("shared/*.py"), *root.glob("agent/*.py")):
            archive.write(path, f"worker/{path.relative_to(root).as_posix()}")
        archive.writestr("worker/__main__.py", LIGHT + code)
    return packed.getvalue()


def _grant(key: str, kind: GrantKind, data: bytes) -> Grant:
    return Grant(key=key, kind=kind, sha256=hashlib.sha256(data).hexdigest(), size=len(data))


def request(
    account: Account,
    *,
    resume: bool = False,
    budget_s: float = 60.0,
    data: bytes = DATA,
    checkpoint: bytes = CHECKPOINT,
    **fields: Any,
) -> LaunchRequest:
    """A launch for a machine that cannot call: one file of data, and a checkpoint to go on from if asked."""
    number = next(_NUMBERS)
    files = {"datasets/" + hashlib.sha256(data).hexdigest(): (GrantKind.DATASET, data)}
    if resume:
        files["jobs/job-1/f1/aa.safetensors"] = (GrantKind.CHECKPOINT, checkpoint)
    grants = [_grant(key, kind, data) for key, (kind, data) in files.items()]
    spec = JobSpec.model_validate({"base_model": "/models/tiny", "datasets": [{"path": "x.jsonl"}], "max_steps": 3})
    assignment = Assignment(
        job="job-1",
        lease=f"lease-{number:04d}",
        fence=2,
        spec=spec,
        seconds_left=budget_s,
        datasets=tuple(grants[:1]),
        resume=grants[1] if resume else None,
    )
    inputs: dict[str, Callable[[], Any]] = {k: lambda data=data: iter([data]) for k, (_, data) in files.items()}
    given: dict[str, Any] = {"assignment": assignment, "inputs": inputs, "token": "a-lease-token", "server_url": None}
    return LaunchRequest(
        lease_id=assignment.lease, job_id="job-1", account=account, budget_s=budget_s, **(given | fields)
    )


def handle_of(launch: LaunchRequest, external_id: str | None = None) -> Handle:
    """How the session of a launch is found again."""
    return Handle(lease_id=launch.lease_id, account=launch.account, external_id=external_id)


def until(true: Callable[[], Any], *, within_s: float = 60.0) -> Any:
    """Poll for a condition; returns what it became."""
    found = first_true(true, within_s)
    assert found, "it never came true"
    return found


def ended(provider: Any, handle: Handle) -> Any:
    """Wait for a session's end; returns what was observed."""
    until(lambda: provider.observe([handle])[0].liveness is Liveness.ENDED)
    return provider.observe([handle])[0]


def slug(handle: Handle) -> str:
    """The name of a session's kernel."""
    assert handle.external_id is not None
    return handle.external_id.split("/")[1]
