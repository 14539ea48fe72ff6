"""Kaggle kernels as machines: script kernels that carry the worker, on their owner's account.

`driver` holds the provider, `access` signs in, `client` and `wire` hold the calls, `source` and `boot` the script that is
pushed, `staging` the files and `package_set` the packages that it reads, `stream` its log, `stopping` its end, `notes` what is kept here, `refusals` what
Kaggle's words mean.
"""

try:
    import kagglesdk as _  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError("Kaggle's client is not installed: pip install 'trainhop[kaggle]'") from error

from orchestrator.providers.kaggle.driver import KaggleProvider

__all__ = ["KaggleProvider"]
