"""Code that worker and server share: messages, the checkpoint file, checks of data.

Of the worker, the server imports only this package and `worker.doctor`.
"""
