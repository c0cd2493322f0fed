"""Owns the tokens: where they come from, what is held out, and in which order they are seen.

It must not know models, optimizers or clocks.
"""
