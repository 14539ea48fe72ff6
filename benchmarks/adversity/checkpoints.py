"""Mutated checkpoints and manifests: each is refused, or it is loaded as exactly what the file says.

Real services, a real SQLite database and a real store. Most mutations are offered with the hash of the mutated bytes,
because a broken worker hashes what it has written. What the server commits is loaded as a worker does, and compared
with what the `safetensors` library reads.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load as read_by_library

from benchmarks.report import Figure
from benchmarks.tiny_job import say
from orchestrator.adapters.database.migrate import upgrade
from orchestrator.adapters.database.unit_of_work import make_engine
from orchestrator.services.dispatch import dispatch
from orchestrator.services.worker_messages import receive
from tests.helpers.world import ROWS, Worker, World
from worker.shared import checkpoint_file
from worker.shared.checkpoint_file import CheckpointError, check_recipe
from worker.shared.checkpoint_header import check_parameters, parameters_sha256, read_header
from worker.shared.lineage import check_owner
from worker.shared.manifest import Manifest, Recipe
from worker.training.sampler import position

MUTATIONS = 10_000
STEPS = 100_000
SHAPES = {"layers.0.lora_A": (4, 6), "layers.0.lora_B": (6, 4), "layers.1.lora_A": (4, 6)}
EXTREMES: list[Any] = [0, -1, 1, 2**31, 2**40, 2**63, 2**64, -(2**70), 1.5, 1e308, True, None, "", "x" * 300, [], {}]
Header = dict[str, Any]


class Sender:
    """A worker that offers bytes of our choice as its next checkpoint."""

    def __init__(self, world: World, worker: Worker, rng: random.Random) -> None:
        self.world, self.worker, self.rng, self.step = world, worker, rng, 0
        worker.start()
        assert worker.assignment is not None
        shapes = list(SHAPES.items())
        facts = {"base_sha256": "b" * 64, "tokenizer_sha256": "c" * 64, "trainable_dtype": "float32"}
        facts["parameters_sha256"] = parameters_sha256(shapes)
        self.spec = worker.assignment.spec
        self.recipe = Recipe.of(self.spec).model_copy(update=facts)

    def whole(self) -> tuple[bytes, Manifest]:
        """A sound next checkpoint."""
        step, batch = self.step + 1, self.spec.global_batch_size
        self.worker.step = step
        epoch, index = position(step, batch, ROWS)
        facts = {"recipe": self.recipe, "epoch": epoch, "index": index, "samples_seen": step * batch}
        manifest = self.worker.manifest(**facts, state={"without_state": []})
        tensors: dict[str, np.ndarray] = {"rng.torch": np.arange(16, dtype=np.uint8)}
        for name, shape in SHAPES.items():
            for place in (f"adapter.{name}", f"optimizer.{name}.exp_avg", f"optimizer.{name}.exp_avg_sq"):
                numbers = [self.rng.uniform(0.1, 1.0) for _ in range(shape[0] * shape[1])]
                tensors[place] = np.array(numbers, dtype=np.float32).reshape(shape)
            tensors[f"optimizer.{name}.step"] = np.array(float(step), dtype=np.float32)
        path = self.world.folder / "whole"
        checkpoint_file.write(path, tensors, manifest)
        return path.read_bytes(), manifest

    def offer(self, data: bytes, manifest: Manifest, sha256: str, size: int) -> tuple[bool, str]:
        """Whether the server made these bytes the head, and if not, why."""
        made = self.worker.write(manifest)
        self.world.store.path(made.key).write_bytes(data)
        reply = receive(self.world.ctx, made.model_copy(update={"sha256": sha256, "size": size}))
        if reply.committed:
            self.step, self.worker.parent = manifest.step, sha256
        else:
            self.world.store.path(made.key).unlink()
        return reply.committed, reply.refusal

    def check(self, data: bytes, manifest: Manifest) -> str:
        """How the next session would load these bytes: "equal", or why it refuses them. Raises what is no refusal."""
        path = self.world.folder / "loaded"
        path.write_bytes(data)
        try:
            tensors, found = checkpoint_file.load(path, hashlib.sha256(data).hexdigest())
            check_owner(found, manifest.job, None)
            check_recipe(self.recipe, found.recipe)
            check_parameters(read_header(data, len(data)))
            if (found.epoch, found.index) != position(found.step, self.spec.global_batch_size, ROWS):
                raise CheckpointError("the position is not that of the step")
            if not all(np.isfinite(array).all() for array in tensors.values()):
                raise CheckpointError("it has NaN or infinite values")
        except CheckpointError as error:
            return str(error)
        expected = read_by_library(data)
        same = expected.keys() == tensors.keys() and all(
            expected[name].dtype == array.dtype and expected[name].tobytes() == array.tobytes()
            for name, array in tensors.items()
        )
        assert same, "loaded as other tensors than the file has"
        assert found == manifest, "loaded with another manifest"
        return "equal"


# --- mutations -------------------------------------------------------------------------------------------


def _split(data: bytes) -> tuple[Header, bytes]:
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def _joined(header: Header | str, body: bytes) -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return len(text).to_bytes(8, "little") + text + body


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _flip_header(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    changed[rng.randrange(8 + int.from_bytes(data[:8], "little"))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return rng.choice([data[:at], data + data[at:], data[:at] + data[at + rng.randint(1, 64) :], data[at:]])


def _entry(data: bytes, rng: random.Random) -> bytes:
    header, body = _split(data)
    names = [name for name in header if name != "__metadata__"]
    name = rng.choice(names)
    entry = header[name]
    match rng.randrange(7):
        case 0:
            entry[rng.choice(list(entry))] = rng.choice(EXTREMES)
        case 1:
            entry["data_offsets"][rng.randrange(2)] = rng.choice(EXTREMES)
        case 2:
            entry["shape"] = rng.choice([[2**40], [2**32, 2**32], [-1, -24], [24], [1] * 17, [0, 2**62], [6, 4, 1]])
        case 3:
            entry["dtype"] = rng.choice(["F64", "F16", "BF16", "I32", "U32", "F8_E4M3", "f4", "U8"])
        case 4:
            other = rng.choice(names)
            header[name], header[other] = header[other], entry
        case 5:
            header[rng.choice(["x", "adapter.x", "rng.x", "", name + " "])] = header.pop(name)
        case _:
            header[rng.choice(["x", "adapter.x"])] = dict(entry)
    return _joined(header, body)


def _twice(data: bytes, rng: random.Random) -> bytes:
    header, body = _split(data)
    name = rng.choice(list(header))
    again = json.dumps({name: header[rng.choice(list(header))]})
    return _joined(json.dumps(header)[:-1] + "," + again[1:], body)


def _text(data: bytes, rng: random.Random) -> bytes:
    header, body = _split(data)
    text = json.dumps(header)
    at = rng.randrange(len(text))
    piece = rng.choice(["{", "}", "[" * 2_000, '"', ",", "NaN", "1" * 5_000, "\\ud800", " " * 100, "\n", "é"])
    return _joined(text[:at] + piece + text[at + rng.choice([0, 1]) :], body)


def _size(data: bytes, rng: random.Random) -> bytes:
    size = rng.choice([0, 1, 2, 7, 8, len(data), len(data) - 8, 2**25 + 1, 2**40, 2**63, 2**64 - 1])
    return size.to_bytes(8, "little") + data[8:]


def _manifest(data: bytes, rng: random.Random) -> bytes:
    header, body = _split(data)
    manifest = json.loads(header["__metadata__"]["trainhop"])
    place = rng.choice([manifest, manifest, manifest["recipe"], manifest["hardware"]])
    name = rng.choice(list(place))
    match rng.randrange(4):
        case 0:
            del place[name]
        case 1 if isinstance(place[name], int | float) and not isinstance(place[name], bool):
            place[name] += rng.choice([-1, 1])
        case 2:
            place[name] = float("nan")
        case _:
            place[name] = rng.choice(EXTREMES)
    header["__metadata__"]["trainhop"] = json.dumps(manifest)
    return _joined(header, body)


def _body(data: bytes, rng: random.Random) -> bytes:
    header, body = _split(data)
    at = header["adapter.layers.0.lora_A"]["data_offsets"][0] + 4 * rng.randrange(24)
    value = np.float32(rng.choice([np.nan, np.inf, -np.inf, 0.5, 1e38])).tobytes()
    return _joined(header, body[:at] + value + body[at + 4 :])


KINDS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "bits": _flip,
    "bits of the header": _flip_header,
    "cuts": _cut,
    "entries": _entry,
    "duplicate keys": _twice,
    "text of the header": _text,
    "size of the header": _size,
    "manifests": _manifest,
    "values": _body,
}


def checkpoints(folder: Path) -> Iterator[Figure]:
    """Mutations of the next checkpoint of one job, and files of another job in its place."""
    rng, counts = random.Random(15), Counter[str]()
    engine = make_engine(f"sqlite:///{folder / 'trainhop.db'}")
    upgrade(engine)
    world = World(engine, folder)
    for who in ("alice", "bob"):
        world.submit(who, STEPS, checkpoint={"keep": 1})
    while dispatch(world.ctx):
        pass
    mine, others = (Sender(world, worker, rng) for worker in world.new_workers())
    wrong = list[str]()
    for number in range(MUTATIONS):
        kind = "another job's" if number % 10 == 9 else list(KINDS)[number % len(KINDS)]
        try:
            counts[f"{kind}: {_one(mine, others, kind, rng)}"] += 1
        except Exception as error:  # noqa: BLE001  whatever is no refusal counts
            wrong.append(f"{kind}: {type(error).__name__}: {str(error)[:200]}")
        if number % 1000 == 999:
            say(f"{number + 1} mutations, {mine.step} committed, {len(wrong)} wrong")
    for line in [*wrong[:10], *(f"{name}: {count}" for name, count in sorted(counts.items()))]:
        say(f"  {line}")
    engine.dispose()
    held = sum(counts.values())
    yield Figure(
        name="mutated checkpoints refused, or loaded equal",
        value=f"{held} of {MUTATIONS}",
        bar=f"{MUTATIONS} of {MUTATIONS}",
        ok=held == MUTATIONS,
    )
    for outcome in ("refused by the server", "loaded equal", "refused by the next session"):
        count = sum(n for name, n in counts.items() if name.endswith(outcome))
        yield Figure(name=f"of them {outcome}", value=count, bar="", ok=True)


def _one(mine: Sender, others: Sender, kind: str, rng: random.Random) -> str:
    data, manifest = mine.whole()
    whole = data
    if kind == "another job's":
        data = others.whole()[0]
    else:
        data = KINDS[kind](data, rng)
        if data == whole:
            data += b"x"
    is_stale = rng.random() < 0.15
    shown = whole if is_stale else data
    try:
        said = checkpoint_file.read_manifest(data)
    except CheckpointError:
        said = manifest
    # What no message can say is offered with the manifest that the worker meant.
    offered = rng.choice([said, said, manifest]) if not is_stale else manifest
    committed, refusal = mine.offer(data, offered, hashlib.sha256(shown).hexdigest(), len(shown))
    if not committed:
        assert refusal, "refused without a reason"
        return "refused by the server"
    assert not is_stale, "committed with the hash of other bytes"
    loaded = mine.check(data, offered)
    return "loaded equal" if loaded == "equal" else "refused by the next session"
