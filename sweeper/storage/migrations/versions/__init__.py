"""One module per schema version, in the order of `names.VERSIONS`.

It must not know what came later.
"""
