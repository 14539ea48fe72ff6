"""What a worker on a pool's machine gets in its environment from the server."""

from __future__ import annotations

from orchestrator.ports.providers import Account, DriverEnv


def worker_variables(env: DriverEnv, account: Account) -> dict[str, str]:
    """How it calls the Hugging Face hub, and the pool's own `env`, which may replace that."""
    found = {"HF_ENDPOINT": env.hub_endpoint} if env.hub_endpoint else {}
    found |= {"HF_HUB_OFFLINE": "1"} if env.offline else {}
    return found | {name: str(value) for name, value in account.config.get("env", {}).items()}
