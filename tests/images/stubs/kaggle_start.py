"""What Kaggle's `sitecustomize` does in every Python process: import wrapt, and look for Google's clients first."""

import importlib.abc
import importlib.util
import sys

import wrapt  # noqa: F401  # pyright: ignore[reportMissingImports]

_CLIENTS = ("google.cloud.automl", "google.cloud.bigquery", "google.cloud.storage", "google.cloud.translate")


class _Loader(importlib.abc.Loader):
    def create_module(self, spec):
        return None

    def exec_module(self, module):
        raise ImportError(f"{module.__name__} is Kaggle's own and not on this machine")


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path, target=None):
        if fullname in _CLIENTS:
            return importlib.util.spec_from_loader(fullname, _Loader(), origin="kaggle")
        return None


sys.meta_path.insert(0, _Finder())
