"""Owns the shipped trainer: one training run from one configuration file, standalone.

It must not know that a sweep exists; all it shares with one is the written event protocol.
"""

from __future__ import annotations

import importlib
import os


def preload() -> None:
    """Import torch and everything that a run needs, for a process that will fork runs.

    It touches no device and starts no thread, as only the thread that forks lives on in a child:
    numpy's linear algebra, which makes its threads when it is imported, is told to have none. A
    child calls `trainer.__main__.main`; its clock begins at the fork, and its thread count is set
    from run.threads or OMP_NUM_THREADS as the child finds them.
    """
    variable = "OPENBLAS_NUM_THREADS"
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        for module in ("numpy.random", "torch", "trainer.__main__", "trainer.train"):
            importlib.import_module(module)
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before
