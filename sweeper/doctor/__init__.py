"""Reads the events of training runs and says what is wrong with them and what to change.

It must not know how runs are started or stored: a run is its event stream, a rule is data.
"""
