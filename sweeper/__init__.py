"""Orchestrates time-to-target sweeps: designs points, runs trainers, stores facts, judges.

Importing this package imports nothing else, because the runner must start in well under 100 ms.
"""

__version__ = "0.1.0"
