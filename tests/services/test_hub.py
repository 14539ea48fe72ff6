"""The Hugging Face hub, asked by its real client: what is looked up, what a machine is let read, what a refusal
means."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from orchestrator.adapters import hub as hub_module
from orchestrator.adapters.catalog import FolderAndHubCatalog
from orchestrator.adapters.hub import Hub
from orchestrator.adapters.hub_errors import HubRequest, in_words
from orchestrator.adapters.token_preview import TokenLooks
from orchestrator.adapters.weight_names import MAX_BYTES
from orchestrator.domain.errors import InvalidError, TrainhopError, UnavailableError
from orchestrator.services.job_checks import refuse_what_the_model_lacks
from tests.emulators.hub import HubEmulator, Repo
from worker.shared.dataset_spec import DatasetSpec, FileFormat, RowFormat
from worker.shared.job_spec import JobSpec

ANN, BOB = "hf_anns_token", "hf_bobs_token"
CONFIG = {
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 32,
}
SHARDS = {"model-00001-of-00002.safetensors": b"first half", "model-00002-of-00002.safetensors": b"second half"}
INDEX = {"metadata": {}, "weight_map": dict(zip("ab", SHARDS, strict=True))}
FILES = {
    "config.json": json.dumps(CONFIG).encode(),
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer.model": b"pieces",
    "chat_template.jinja": b"{{ messages }}",
    "merges.txt": b"a b",
    "model.safetensors.index.json": json.dumps(INDEX).encode(),
    **SHARDS,
    "consolidated.safetensors": b"all of it once more",
    "consolidated.json": b"{}",
    "model.fp16.safetensors": b"and again",
    "original/params.json": b"{}",
    "original/consolidated.00.pth": b"pickled",
    "pytorch_model.bin": b"pickled",
    "modeling_own.py": b"raise SystemExit",
    "README.md": b"terms",
}


@pytest.fixture
def hub(hub: HubEmulator) -> HubEmulator:
    hub.accounts |= {ANN: "ann", BOB: "bob"}
    hub.add(Repo(id="org/open", files=FILES, parameters=1234))
    hub.add(Repo(id="org/gated", files=FILES, gated=True, readers={"ann"}, large=frozenset({"tokenizer.model"})))
    hub.add(Repo(id="org/private", files=FILES, private=True, readers={"ann"}))
    hub.add(Repo(id="org/rows", kind="dataset", files={"train.jsonl": b'{"text": "a"}\n'}, gated=True, readers={"ann"}))
    return hub


@pytest.fixture
def catalog(hub: HubEmulator, tmp_path: Path) -> FolderAndHubCatalog:
    return FolderAndHubCatalog((), frozenset(), offline=False, endpoint=hub.endpoint, cache=tmp_path / "cache")


def refusal(kind: type[TrainhopError], look, *asked) -> str:
    with pytest.raises(kind) as caught:
        look(*asked)
    return str(caught.value)


def test_a_public_model_is_pinned_and_needs_no_token(catalog, hub):
    found = catalog.model("org/open")
    assert found.name == f"org/open@{hub.repos['model', 'org/open'].commit}"
    assert found.parameters == 1234
    assert found.shape is not None
    assert {seen.authorization for seen in hub.seen} == {None}


@pytest.mark.parametrize("name", ["org/gated", "org/private"])
def test_with_its_readers_token_a_closed_model_can_be_planned(catalog, hub, name):
    """Guard: without `token` in `Hub.model` both were refused. What is sent is the member's token, never the
    operator's."""
    assert catalog.model(name, ANN).name == f"{name}@{hub.repos['model', name].commit}"
    assert {seen.authorization for seen in hub.seen} == {f"Bearer {ANN}"}


def test_every_refusal_says_who_has_to_do_what(catalog, hub):
    page = "https://huggingface.co/org/gated"
    no_token = refusal(InvalidError, catalog.model, "org/gated")
    assert f"Accept its terms at {page} and set a token with `trainhop hub login`" in no_token
    assert f"Accept its terms at {page} and try again" in refusal(InvalidError, catalog.model, "org/gated", BOB)
    assert "does not accept your token" in refusal(InvalidError, catalog.model, "org/gated", "hf_made_up")
    assert "does not accept your token" in refusal(InvalidError, catalog.model, "org/open", "hf_made_up")
    private = refusal(InvalidError, catalog.model, "org/private")
    assert "Check the id and revision, or run `trainhop hub login` if it is private" in private
    assert private.replace("org/private", "org/nobody") == refusal(InvalidError, catalog.model, "org/nobody")
    assert "check the permissions of your token" in refusal(InvalidError, catalog.model, "org/private", BOB)
    assert "Check the id and revision" in refusal(InvalidError, catalog.model, "org/open@" + "0" * 40)
    assert "is not a Hugging Face id" in refusal(InvalidError, catalog.model, "org/-not-")
    page = "https://huggingface.co/datasets/org/rows"
    assert page in refusal(InvalidError, catalog.dataset, "org/rows", "train")
    assert "/path" in {pointer for pointer, _ in _problems(catalog.dataset, "org/rows", "train", BOB)}


def _problems(look, *asked):
    with pytest.raises(InvalidError) as caught:
        look(*asked)
    return caught.value.problems


def test_a_hub_that_is_busy_or_away_is_tried_later(catalog, hub):
    """Guard: with `retry_after_s` not read, the 429's own waiting time was lost."""
    hub.rules.add("GET /api/models", status=429, headers={"Retry-After": "77"})
    with pytest.raises(UnavailableError, match="busy") as caught:
        catalog.model("org/open")
    assert caught.value.retry_after_s == 77
    hub.rules.add("GET /api/models", status=429, headers={"RateLimit": '"api";r=0;t=55'})
    with pytest.raises(UnavailableError) as caught:
        catalog.model("org/open")
    assert caught.value.retry_after_s == 55
    hub.rules.add("GET /org/open/resolve", status=503)
    assert "503" in refusal(UnavailableError, catalog.model, "org/open")
    hub.rules.add("GET /api/models", cut=True)
    assert "use an allowed folder" in refusal(UnavailableError, catalog.model, "org/open")
    hub.rules.add("HEAD /datasets", cut=True)
    assert "upload the file" in refusal(UnavailableError, catalog.dataset, "org/rows", "train", ANN)


NAMES = ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight")
IN_SHARDS = {"model.safetensors.index.json": json.dumps({"weight_map": dict.fromkeys(NAMES, "1.safetensors")}).encode()}


def in_one_file(*names: str) -> bytes:
    """A file of safetensors with two rows of two for each name."""
    tensors = {name: {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} for name in names}
    header = json.dumps({"__metadata__": {"format": "pt"}} | tensors).encode()
    return len(header).to_bytes(8, "little") + header


IN_ONE_FILE = {"model.safetensors": in_one_file(*NAMES) + bytes(1 << 20)}


def with_targets(*targets: str) -> JobSpec:
    return JobSpec(base_model="org/named", datasets=(DatasetSpec(path="x"),), max_steps=1, lora_target_modules=targets)


@pytest.mark.parametrize("weights", [IN_SHARDS, IN_ONE_FILE], ids=["index", "header"])
def test_modules_that_a_hub_model_lacks_are_refused_at_submit(catalog, hub, weights):
    """Guards: without `_modules` the first session failed, after its download; with more than the header read, this
    hub, which sends no more, let the submit wait.
    """
    hub.add(Repo(id="org/named", files={"config.json": json.dumps(CONFIG).encode(), **weights}))
    hub.stall("GET /signed/model.safetensors", after=len(in_one_file(*NAMES)))
    model = catalog.model("org/named", with_modules=True)
    assert model.modules == {name.removesuffix(".weight") for name in NAMES}
    refuse_what_the_model_lacks(with_targets("q_proj", "mlp.up_proj", "lm_head"), model)
    with pytest.raises(InvalidError, match="no module 'qproj'; did you mean 'q_proj'") as refused:
        refuse_what_the_model_lacks(with_targets("up_proj", "qproj"), model)
    assert [pointer for pointer, _ in refused.value.problems] == ["/lora_target_modules/1"]
    refuse_what_the_model_lacks(with_targets("qproj"), replace(model, kind="hrm_text"))
    asked = len(hub.seen)
    assert catalog.model("org/named").modules == frozenset()
    assert not [seen for seen in hub.seen[asked:] if "safetensors" in seen.request], "nobody has asked for names"


def test_a_hub_that_does_not_tell_the_modules_stops_no_submit(catalog, hub):
    """Guards: without the limits of time and size the submit waited, or the header was read for its whole length."""
    config = json.dumps(CONFIG).encode()
    bad = {
        "model.safetensors": [b"", b"x" * 7, (1 << 40).to_bytes(8, "little") + b"{" * 99, in_one_file(*NAMES)[:-9]],
        "model.safetensors.index.json": [b"{", b"[]", b"{}", b'{"weight_map": "x.y"}', b'{"weight_map": ["x.y"]}'],
        "pytorch_model.bin": [b"pickled"],
    }
    bad["model.safetensors.index.json"].append(*(text + b" " * MAX_BYTES for text in IN_SHARDS.values()))
    for name, contents in bad.items():
        for content in contents:
            hub.add(Repo(id="org/named", files={"config.json": config, name: content}))
            assert catalog.model("org/named", with_modules=True).modules == frozenset(), content[:40]
    hub.add(Repo(id="org/named", files={"config.json": config, **IN_ONE_FILE}))
    hub.rules.add("GET /org/named/resolve/[0-9a-f]+/model.safetensors", status=503)
    found = catalog.model("org/named", with_modules=True)
    assert (found.kind, found.modules) == ("llama", frozenset())
    assert catalog.model("org/named", with_modules=True).modules, "the hub is asked again"
    hub.stall("GET /signed/", after=9)
    hasty = Hub(is_offline=False, endpoint=hub.endpoint, modules_s=0.2)
    assert hasty.model("org/named", None, lambda _: None, with_modules=True).modules == frozenset()
    with pytest.raises(UnavailableError, match="too slowly"):  # piece by piece, each of them in time
        next(hub_module._in_time(iter([b"a"]), -1.0))


def test_submit_asks_for_modules_only_if_the_job_names_some(world, catalog, hub):
    """Guard: without `with_modules` in `resolve` the job was queued, and its first session failed it."""
    hub.add(Repo(id="org/named", files={"config.json": json.dumps(CONFIG).encode(), **IN_SHARDS}))
    world.ctx = replace(world.ctx, catalog=catalog)
    with pytest.raises(InvalidError, match="the base model has no module 'wq'"):
        world.submit("alice", base_model="org/named", lora_target_modules=["wq"])
    asked = len(hub.seen)
    world.submit("alice", base_model="org/named")
    assert not [seen for seen in hub.seen[asked:] if "safetensors" in seen.request]
    hub.add(Repo(id="org/states", files={"config.json": json.dumps(CONFIG | {"model_type": "mamba"}).encode()}))
    with pytest.raises(InvalidError, match=r"set lora_target_modules to \[in_proj, x_proj\]"):
        world.submit("alice", base_model="org/states")


def test_layers_and_steps_that_there_are_not_are_refused_at_submit(world, catalog, hub):
    """Guards: without `_unknown_layers` PEFT adapted the other layers; without `schedule_fault` in `resolve` a job with
    epochs decayed from its first step on."""
    hub.add(Repo(id="org/named", files={"config.json": json.dumps(CONFIG).encode(), **IN_SHARDS}))
    world.ctx = replace(world.ctx, catalog=catalog)
    with pytest.raises(InvalidError, match="the base model has 2 layers, the first being 0") as refused:
        world.submit("alice", base_model="org/named", lora_layers_to_transform=[1, 2])
    assert [pointer for pointer, _ in refused.value.problems] == ["/lora_layers_to_transform/1"]
    with pytest.raises(InvalidError, match=r"has \d steps, and its warm-up of 900 and its decay of 0 steps do not fit"):
        world.submit("alice", base_model="org/named", max_steps=None, num_epochs=1, warmup_steps=900)
    with pytest.raises(InvalidError, match="has 4 steps, and its warm-up of 5"):
        world.submit("alice", 4, base_model="org/named", warmup_steps=5)


@pytest.mark.parametrize(("status", "kind"), [(429, UnavailableError), (503, UnavailableError), (403, InvalidError)])
def test_a_refused_download_is_not_called_a_missing_connection(status, kind):
    """The client says that the file is not in its cache either, and names the refusal as the cause.

    Guard: without the look at the cause, each was "could not reach Hugging Face".
    """
    answer = httpx.Response(
        status, headers={"Retry-After": "7"}, request=httpx.Request("GET", "https://huggingface.co")
    )
    request = HubRequest(name="org/data", page="https://huggingface.co/org/data", pointer="/path", signed_in=False)
    with pytest.raises(kind) as raised, in_words(request):
        raise LocalEntryNotFoundError("not in the cache") from HfHubHTTPError("refused", response=answer)
    assert "reach" not in str(raised.value)
    assert getattr(raised.value, "retry_after_s", None) == (7.0 if kind is UnavailableError else None)


def test_a_server_that_stays_offline_asks_nobody(hub):
    still = FolderAndHubCatalog((), frozenset(), offline=True, endpoint=hub.endpoint)
    assert still.model("org/gated", ANN).name == "org/gated"
    assert still.files("org/gated", ANN) == ()
    assert "stay offline" in refusal(InvalidError, still.dataset, "org/rows", "train", ANN)
    assert "stay offline" in refusal(InvalidError, still.whose, ANN)
    assert hub.seen == []


def test_a_gated_dataset_is_not_had_through_the_cache_of_another(catalog, hub):
    """Guard: without the look at the file itself, Bob was given what Ann had brought: the client falls back on its
    folder."""
    (found,) = catalog.dataset("org/rows", "train", ANN)
    assert found.path.read_bytes() == b'{"text": "a"}\n'
    for token in (BOB, None):
        assert "is gated" in refusal(InvalidError, catalog.dataset, "org/rows", "train", token)


def test_the_owner_of_a_token_is_told_and_a_wrong_one_refused(catalog, hub):
    assert catalog.whose(ANN) == "ann"
    assert "does not accept your token" in refusal(InvalidError, catalog.whose, "hf_made_up")
    hub.rules.add("whoami", status=500)
    refusal(UnavailableError, catalog.whose, ANN)


def pinned(hub: HubEmulator, name: str) -> str:
    return f"{name}@{hub.repos['model', name].commit}"


@pytest.mark.parametrize("name", ["org/gated", "org/private"])
def test_a_machine_reads_a_closed_models_files_without_the_token(catalog, hub, name):
    """What is granted is what loading needs, with its hashes, and the addresses work for whoever has them.

    Guards: with all weights wanted, the spare ones came along; with `small` read through the signed address, it told
    the other host the token.
    """
    found = {file.name: file for file in catalog.files(pinned(hub, name), ANN)}
    needed = {"config.json", "tokenizer.json", "tokenizer.model", "chat_template.jinja", "merges.txt", *SHARDS}
    assert set(found) == needed | {"model.safetensors.index.json"}
    large = {file.name for file in found.values() if file.data is None}
    assert large == {*SHARDS, *({"tokenizer.model"} if name == "org/gated" else ())}
    for file in found.values():
        data = httpx.get(file.url, trust_env=False).content if file.url else file.data
        assert data == FILES[file.name]
        assert (file.sha256, file.size) == (hashlib.sha256(data).hexdigest(), len(data))
        assert ANN not in repr(file)
        assert "Signature" not in repr(file)
    signed = [seen for seen in hub.seen if "/signed/" in seen.request]
    assert len(signed) == len(large)
    assert {seen.authorization for seen in signed} == {None}


def test_a_model_for_everybody_is_left_to_the_machine(catalog, hub):
    assert catalog.files(pinned(hub, "org/open"), ANN) == ()
    hub.rules.add("GET /api/models", status=503)
    assert catalog.files(pinned(hub, "org/open"), ANN) == ()  # nobody has to be asked again to know that
    hub.rules.add("GET /api/models", status=503)
    refusal(UnavailableError, catalog.files, pinned(hub, "org/gated"), ANN)


def test_one_file_of_weights_is_enough_and_code_comes_only_where_trusted(hub, tmp_path):
    files = {"config.json": b"{}", "model.safetensors": b"all", "model.fp16.safetensors": b"again", "own.py": b"1"}
    hub.add(Repo(id="org/one", files=files, private=True, readers={"ann"}))
    for trusted, more in ((frozenset[str](), set[str]()), (frozenset({"org/one"}), {"own.py"})):
        catalog = FolderAndHubCatalog((), trusted, offline=False, endpoint=hub.endpoint)
        names = {file.name for file in catalog.files(pinned(hub, "org/one"), ANN)}
        assert names == {"config.json", "model.safetensors"} | more


def test_an_index_that_names_what_is_not_there_is_refused(catalog, hub):
    files = FILES | {"model.safetensors.index.json": b'{"weight_map": {"a": "lost.safetensors"}}'}
    hub.add(Repo(id="org/torn", files=files, private=True, readers={"ann"}))
    assert "lost.safetensors" in refusal(InvalidError, catalog.files, pinned(hub, "org/torn"), ANN)
    hub.add(Repo(id="org/odd", files=FILES | {"model.safetensors.index.json": b"[]"}, private=True, readers={"ann"}))
    assert "cannot be read" in refusal(InvalidError, catalog.files, pinned(hub, "org/odd"), ANN)


def test_a_model_of_too_many_or_too_large_files_is_refused(catalog, hub):
    """Guards: without either limit the server read on."""
    closed = {"private": True, "readers": {"ann"}}
    many = {f"{number}.json": b"{}" for number in range(hub_module.MAX_FILES + 1)}
    hub.add(Repo(id="org/many", files=FILES | many, **closed))
    assert "more than 256 files" in refusal(InvalidError, catalog.files, pinned(hub, "org/many"), ANN)
    hub.add(Repo(id="org/large", files=FILES | {"vocab.txt": bytes(hub_module.MAX_SMALL_BYTES + 1)}, **closed))
    assert "is too large" in refusal(InvalidError, catalog.files, pinned(hub, "org/large"), ANN)
    config = json.dumps(CONFIG).encode() + b" " * hub_module.MAX_CONFIG_BYTES
    hub.add(Repo(id="org/wordy", files=FILES | {"config.json": config}))
    assert "is too large" in refusal(InvalidError, catalog.model, "org/wordy")


@pytest.mark.parametrize(
    ("location", "hub_at", "good"),
    [
        ("https://us.aws.cdn.hf.co/x?Signature=s", None, True),
        ("http://us.aws.cdn.hf.co/x?Signature=s", None, False),
        ("https://huggingface.co/org/gated/resolve/main/x", None, False),
        ("https://somebody@cdn.hf.co/x", None, False),
        ("http://localhost:5/x", None, False),
        ("http://localhost:5/x", "http://127.0.0.1:5", True),
        ("http://cdn.hf.co/x", "http://127.0.0.1:5", False),
        ("file:///etc/passwd", None, False),
        ("/relative", None, False),
    ],
)
def test_machines_are_sent_to_https_alone_and_never_where_a_token_is_asked(location, hub_at, good):
    """Guard: with every address good, a machine would have been sent to plain http, or to the hub without a token."""
    assert Hub(is_offline=False, endpoint=hub_at)._is_elsewhere(location) is good


def test_a_look_by_token_needs_the_members_own_right(catalog, hub, tmp_path):
    """Guard: with the client's implicit token, or another member's cache, Bob saw a gated tokenizer at work."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a"}\n')
    looks = TokenLooks(catalog, offline=False, endpoint=hub.endpoint, cache=tmp_path / "cache", cpu_s=4)

    def away(token: str | None) -> str:
        how = {"sequence_len": 16, "train_on_inputs": False, "token": token}
        return looks.of("org/gated", rows, RowFormat.TEXT, FileFormat.JSONL, **how).away

    away(ANN)
    assert (tmp_path / "cache" / "models--org--gated").is_dir()
    for token in (BOB, None):
        assert "is gated. Accept its terms" in away(token)


def test_shards_are_fetched_within_a_limit_of_all(hub, tmp_path):
    """Guard: with each shard's own size compared, all of them together had no limit."""
    shards = {f"train-{n:05}-of-00002.jsonl": b'{"text": "a"}\n' for n in range(2)}
    hub.add(Repo(id="org/shards", kind="dataset", files=shards))
    for most in (28, 27):
        own = Hub(is_offline=False, endpoint=hub.endpoint, cache=tmp_path, most_data_bytes=most)
        if most == 28:
            assert [file.name for file in own.dataset("org/shards", "train", None)] == list(shards)
        else:
            with pytest.raises(InvalidError, match="The shards of org/shards have more than 0 MiB"):
                own.dataset("org/shards", "train", None)
