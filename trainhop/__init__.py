"""The Python side of Trainhop: a client of its server, and training in an open notebook.

    import trainhop

    client = trainhop.Client()                    # the server that `trainhop` on the command line would call
    job = client.jobs.wait(client.jobs.submit("job.yaml"))
    client.jobs.download_adapter(job, "my-adapter")

    trainhop.notebook.run("CODE", server="https://trainhop.example")

    trainhop.run("job.yaml", place="hf://me/my-run")   # without a server: a shared place has everything

`import trainhop` itself loads nothing. It works beside files of yours that are called worker.py or orchestrator.py, and
your own `import worker` still gets your file, except while a call into this package runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainhop import notebook
    from trainhop.async_client import AsyncClient
    from trainhop.client import Client
    from trainhop.errors import Error
    from trainhop.records import Curve, Dataset, Event, Job, Output, Place, Plan, Session, Step
    from trainhop.without_server import run
    from worker.shared.job_spec import JobSpec

    __version__: str

__all__ = [
    "AsyncClient",
    "Client",
    "Curve",
    "Dataset",
    "Error",
    "Event",
    "Job",
    "JobSpec",
    "Output",
    "Place",
    "Plan",
    "Session",
    "Step",
    "__version__",
    "notebook",
    "run",
]

_MODULES = {
    "AsyncClient": "async_client",
    "Client": "client",
    "Error": "errors",
    "JobSpec": "job_file",
    **dict.fromkeys(("Curve", "Dataset", "Event", "Job", "Output", "Place", "Plan", "Session", "Step"), "records"),
    "run": "without_server",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _MODULES:
        found = getattr(import_module(f"trainhop.{_MODULES[name]}"), name)
    elif name == "notebook":
        found = import_module("trainhop.notebook")
    elif name == "__version__":
        found = _version()
    else:
        raise AttributeError(f"module 'trainhop' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__


def _version() -> str:
    """The version of the distribution that is installed here: the whole one, or the worker's alone."""
    from importlib import metadata

    try:
        return metadata.version("trainhop")
    except metadata.PackageNotFoundError:
        return metadata.version("trainhop-worker")
