"""Where facts live: studies, frozen plans, trials, attempts, curves, leases, in Postgres.

It must not know what a good result is.
"""
