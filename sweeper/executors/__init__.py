"""Executors find a place for an attempt and start one runner there.

They must not know what a trial is about or how it ended: the answer is a file.
"""
