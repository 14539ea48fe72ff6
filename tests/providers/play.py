"""What tests of the drivers share."""

from __future__ import annotations

from orchestrator.domain.model import Account


class OpenVault:
    """Implements `ports.Vault` without secrecy: what is sealed only looks different."""

    def seal(self, secret: str) -> str:
        return secret[::-1]

    def open(self, sealed: str) -> str:
        return sealed[::-1]


def kaggle_account(name: str, credentials: str | None = None, **config) -> Account:
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
