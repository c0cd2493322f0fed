"""Verdicts as pure functions of stored facts.

It must not know SQL, Optuna or files.
"""
