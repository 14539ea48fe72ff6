"""A shared place instead of a server: store, queue and lock of one run.

    opened = open_place("hf://me/my-run", Credentials(hub_token=token))
    chain = Chain(opened.place, writer=writer, where="Tesla T4")

`Place` is what a place has to do, `Chain` is what a session does with it. The standard library and pydantic are enough
for a folder. The Hub's client is imported for `hf://`, httpx for `drive://`.
"""

from worker.shared.shared_places.addresses import Credentials, OpenedPlace, open_place
from worker.shared.shared_places.chain import Chain, Holder
from worker.shared.shared_places.errors import (
    BusyError,
    DamagedError,
    ForkError,
    FullError,
    LostError,
    MissingError,
    OtherJobError,
    PlaceError,
    RefusedError,
    UnknownError,
)
from worker.shared.shared_places.head import Head, Stored
from worker.shared.shared_places.place import Blob, Place
from worker.shared.shared_places.retries import Retries

__all__ = [
    "Blob",
    "BusyError",
    "Chain",
    "Credentials",
    "DamagedError",
    "ForkError",
    "FullError",
    "Head",
    "Holder",
    "LostError",
    "MissingError",
    "OpenedPlace",
    "OtherJobError",
    "Place",
    "PlaceError",
    "RefusedError",
    "Retries",
    "Stored",
    "UnknownError",
    "open_place",
]
