"""A Hugging Face hub to test against: on a loopback port, asked by the real `huggingface_hub`, with faults by rule.

    with HubEmulator() as hub:
        hub.accounts["hf_ann"] = "ann"
        hub.add(Repo(id="org/gated", gated=True, readers={"ann"}, files={"config.json": b"{}", ...}))
        hub.rules.add("GET /api/models", status=429, headers={"Retry-After": "7"})
        hub.stall("GET /signed/model.safetensors", after=1000)
        Settings(hub_endpoint=hub.endpoint, ...)

What is there: whoami, info and listing of models and datasets, `resolve` (small files by way of the hub's own cache
address, large ones by a redirect to another host with a signed address that needs no sign-in), gated and private
repositories. Of what writes: new repositories, large files by LFS, commits with a parent, the history in pages, and
rights of tokens and organisations, files of older commits, large files that are deleted for ever (`hub.writes`). What
is not there: bytes by Xet, pull requests, squashed histories.
"""

from tests.emulators.hub.server import HubEmulator, Seen
from tests.emulators.hub.state import Repo, checked

__all__ = ["HubEmulator", "Repo", "Seen", "checked"]
