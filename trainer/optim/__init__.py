"""Owns the update rules and their assembly from parameter roles.

It must not know architectures, data or clocks.
"""
