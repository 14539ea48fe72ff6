"""What a member may not have the server do: send anything into the network that it stands in itself."""

from __future__ import annotations

import datetime as dt
import json
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from orchestrator.adapters import private_networks
from orchestrator.adapters.notifier import INSIDE, WebNotifier
from orchestrator.domain.accounts import Role
from tests.dashboard.receivers import receiving

PUBLIC = "93.184.215.14"
NAMES = {"intern.example": ["10.1.2.3"], "both.example": [PUBLIC, "::1"], "far.example": [PUBLIC]}


def known(host: str) -> list[str]:
    """The system's resolver for what needs no network, and a handful of names."""
    return NAMES[host] if host in NAMES else private_networks.lookup(host)


@pytest.fixture
def resolve(api1, people) -> Callable[..., None]:
    """Names resolve as this function says, and `inside` are the addresses of which this other one says so."""

    def use(lookup: private_networks.Lookup, inside: private_networks.IsInside = private_networks.is_inside) -> None:
        api1.app.notifier = WebNotifier(lookup, inside)

    return use


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.9.10",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "0.1.2.3",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "192.0.2.1",
        "198.18.0.1",
        "::1",
        "::",
        "fe80::1",
        "fe80::1%lo",
        "fc00::1",
        "fd12:3456::1",
        "fec0::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::127.0.0.1",
        "2002:7f00:1::",
        "2002:a00:1::",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "2001:db8::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    ],
)
def test_what_lies_inside(address):
    """Guards: without `is_multicast` 224.0.0.1 was outside; without `_UNICAST` fec0::1, ::127.0.0.1 and 64:ff9b:1::1
    were; without `_TRANSLATED` an address of NAT64 was refused or let through whatever it led to."""
    assert private_networks.is_inside(address)


@pytest.mark.parametrize(
    "address", [PUBLIC, "::ffff:93.184.215.14", "2606:2800:220:1::1", "64:ff9b::5db8:d70e", "2002:5db8:d70e::"]
)
def test_what_lies_outside(address):
    assert not private_networks.is_inside(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9/",
        "http://localhost:9/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://0/",
        "http://10.0.0.5/",
        "http://169.254.169.254/latest/meta-data",
        "http://[::1]/",
        "http://[fd00::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://me:pw@10.0.0.5/",
        "https://intern.example/hook",
        "https://both.example/hook",
        "json://127.0.0.1",
        "json://localhost",
        "json://intern.example",
        "gotify://[::1]/abcdefghijklmno",
        "ntfy://192.168.1.1/topic",
        "mailto://me:pw@gmail.com?smtp=10.0.0.1",
        "rsyslog://intern.example",
    ],
)
def test_only_an_admin_adds_an_address_inside(api1, people, resolve, url):
    """Guard: with `anywhere` always true each of these was taken from a member."""
    resolve(known)
    refused = people.ann.post("/notifications", {"url": url})
    assert refused.status_code == 422
    assert refused.json()["errors"] == [{"pointer": "/url", "detail": INSIDE}]
    assert people.admin.post("/notifications", {"url": url}).status_code == 201


@pytest.mark.parametrize(
    "url", ["https://far.example/hook", "json://far.example", "tgram://123456789:abcdefg_hijklmnop/1"]
)
def test_members_add_what_lies_outside(api1, people, resolve, url):
    """Guard: with the port of every address read, a Telegram bot's token was no address."""
    resolve(known)
    assert people.ann.post("/notifications", {"url": url}).status_code == 201


def sent(member, url: str) -> dict:
    """Add a channel and try it."""
    made = member.post("/notifications", {"url": url})
    assert made.status_code == 201, made.text
    return member.post(f"/notifications/{made.json()['channel']['id']}:test").json()


def test_a_name_that_moves_inside_is_not_followed(api1, people, resolve, receiver):
    """Guard: without the look in `OutsideTransport` the message arrived."""
    answers = iter([[PUBLIC], ["127.0.0.1"]])
    resolve(lambda _: next(answers))
    tried = sent(people.ann, f"http://moves.example:{receiver.port}/")
    assert (tried["state"], tried["detail"]) == ("failed", INSIDE)
    assert receiver.got == []


def test_apprise_does_not_follow_it_either(api1, people, resolve, receiver):
    """Guard: without `only_outside` the message arrived."""
    resolve(lambda _: [PUBLIC])
    tried = sent(people.ann, f"json://localhost:{receiver.port}/")
    assert (tried["state"], tried["detail"]) == ("failed", INSIDE)
    assert receiver.got == []
    assert sent(people.admin, f"json://localhost:{receiver.port}/")["state"] == "sent"


def test_nobody_is_led_inside_by_an_answer(api1, people, resolve, receiver):
    """Guard: without `only_outside` Apprise carried the message on to the second server."""
    with receiving("127.0.0.2") as within:
        resolve(private_networks.lookup, lambda address: address == within.host)
        receiver.status, receiver.location = 307, within.url
        assert sent(people.ann, receiver.url.replace("http:", "json:"))["detail"] == INSIDE
        assert sent(people.ann, receiver.url)["detail"] == "it answered 307"
        assert len(receiver.got) == 2
        assert within.got == []


def test_what_counts_is_who_the_owner_is_when_it_is_sent(api1, people, receiver):
    """Guard: with the role looked at only when the channel was added, the second message arrived."""
    made = people.admin.post("/notifications", {"url": receiver.url}).json()["channel"]["id"]
    assert people.admin.post(f"/notifications/{made}:test").json()["state"] == "sent"
    with api1.app.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE members SET role = '{Role.MEMBER.value}' WHERE name = 'admin'")
    assert people.admin.post(f"/notifications/{made}:test").json()["detail"] == INSIDE
    assert len(receiver.got) == 1


def test_the_address_that_was_looked_at_is_the_one_that_is_called(api1, people, resolve, monkeypatch, tmp_path):
    """By the host's name all the same, in the request and in TLS; the next address where the first does not answer.

    Guards: without `sni_hostname` the certificate did not fit; with one address tried, nothing was sent.
    """
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate(tmp_path, "hook.example")))
    asked: list[str | None] = []
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    tls.sni_callback = lambda _socket, name, _context: asked.append(name)
    with receiving(tls=tls) as remote:
        answers = iter([["127.0.0.9"], ["127.0.0.9", "127.0.0.1"]])
        resolve(lambda _: next(answers), lambda address: address not in ("127.0.0.1", "127.0.0.9"))
        assert sent(people.ann, f"https://hook.example:{remote.port}/hook")["state"] == "sent"
        ((headers, body),) = remote.got
    assert headers["host"] == f"hook.example:{remote.port}"
    assert asked == ["hook.example"]
    assert json.loads(body)["type"] == "trainhop.test"


def certificate(folder: Path, name: str) -> Path:
    """A certificate of its own authority, beside its key."""
    key, who = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(who)
        .issuer_name(who)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    (folder / "cert.pem").write_bytes(made.public_bytes(pem))
    return folder / "cert.pem"


@pytest.mark.parametrize(
    "url",
    [
        "tgram://123456789:abcdefg_hijklmnop/1?template={}",
        "fcm://project/device?keyfile={}",
        "workflows://far.example/WORKFLOW/SIGNATURE/?template={}",
    ],
)
def test_no_file_of_the_server_goes_into_a_message(api1, people, resolve, tmp_path, url):
    """Guard: with Apprise's `file` left in place, what a template named was read and sent to whoever had named it."""
    resolve(known)
    (tmp_path / "secret.json").write_text('{"a": "secret"}')
    assert people.ann.post("/notifications", {"url": url.format(tmp_path / "secret.json")}).status_code == 422
