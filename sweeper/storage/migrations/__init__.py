"""The steps from one schema version to the next, run by Alembic.

It must not import `schema` in a version: a step stays what it was when the schema moves on.
"""
