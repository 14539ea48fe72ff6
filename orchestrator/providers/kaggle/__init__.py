"""The Kaggle driver. A session is a script kernel with the worker, in the account of its owner.

`driver` is the provider. `access` signs in. `client` and `http` make the calls. `kernel` and `boot` are the pushed
script. `staging` provides its files and `package_set` its packages. `stream` reads its log, `outputs` its files, and
`stopping` ends it. `records` stores the sessions on this server. `errors` translates Kaggle's refusals.
"""

try:
    import kagglesdk as _  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError("Kaggle's client is not installed: pip install 'trainhop[kaggle]'") from error

from orchestrator.providers.kaggle.driver import KaggleProvider

__all__ = ["KaggleProvider"]
