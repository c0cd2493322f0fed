"""One module per schema version, in the order of `schema.VERSIONS`.

It must not know what came later.
"""
