"""Designs: fixed lists of points, chosen before any result of theirs is known.

It must not know what the numbers mean, what a trial costs, or where it runs.
"""
