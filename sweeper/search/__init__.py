"""Search remembers points and values in the field's own terms, and can suggest points.

It must not know processes, limits or targets.
"""
