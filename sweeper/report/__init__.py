"""Figures, HTML, markdown, JSON and console views of an analysis.

It must not know how any number was computed.
"""
