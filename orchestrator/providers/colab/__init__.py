"""Colab: notebooks that people open themselves and, where an account's owner wants it, paid machines through the official client.

`driver` holds the provider, `calls` runs `bridge` in the client's own environment, `source` and `boot` are what a machine is
brought, `notes` what is kept here, `refusals` what Colab's words mean.
"""

from orchestrator.providers.colab.driver import ColabProvider

__all__ = ["ColabProvider"]
