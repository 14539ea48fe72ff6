"""The Colab driver: notebooks that members run, and paid machines through Colab's official client.

`driver` is the provider. `calls` runs `bridge` in the client's own environment. `source` and `boot` are sent to a
machine. `records` stores the sessions on this server. `errors` translates Colab's refusals.
"""

from orchestrator.providers.colab.driver import ColabProvider

__all__ = ["ColabProvider"]
