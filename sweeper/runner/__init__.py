"""The runner: one attempt from its spec to its outcome file, next to the device that it uses.

It must not know stages, Optuna, the database or which executor started it; importing this package
imports nothing, and all of it needs only the standard library, so that it starts in under 100 ms.
"""
