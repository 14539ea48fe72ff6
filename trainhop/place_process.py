"""`python -m trainhop.place_process ORDER`: the process that trains for a cell without a server.

It saves and leaves when its notebook ends. The tokens are in its environment.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from worker.notebook.attended import leave_with_the_notebook  # first: it notes the time, and sets what OpenMP reads


def main(path: Path) -> int:
    """Read the order and do it in its folder. Returns the exit code."""
    from trainhop.place_access import credentials
    from worker.notebook.place_session import REFUSED, Events, Order, work
    from worker.shared.process import note_process
    from worker.shared.shared_places import PlaceError, open_place

    note_process(path.parent)
    order, events = Order.model_validate_json(path.read_text()), Events(path.parent)
    try:
        opened = open_place(order.address, credentials(order.address))
    except PlaceError as error:
        events.tell(refused=str(error))
        return REFUSED
    events.tell(place=opened.place.address, say=opened.note)
    author = None
    if order.job is not None:
        try:
            from trainhop.job_author import JobAuthor
        except ImportError as error:
            events.tell(refused=f"This installation of Trainhop is not complete ({error}). Run `pip install trainhop`.")
            return REFUSED
        author = JobAuthor(order.name, order.job, Path(order.folder) if order.folder else None)
    return work(opened.place, order, author, path.parent)


if __name__ == "__main__":
    threading.Thread(target=leave_with_the_notebook, daemon=True).start()
    code = main(Path(sys.argv[1]).resolve())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # as in worker.notebook.attended: torch's threads sometimes abort the interpreter
