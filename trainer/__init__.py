"""Owns the shipped trainer: one training run from one configuration file, standalone.

It must not know that a sweep exists; all it shares with one is the written event protocol.
"""
