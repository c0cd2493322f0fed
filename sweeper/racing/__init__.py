"""Who can still matter: bounds on a trial's time from the curves seen so far.

It must not know processes or databases; it sees curves and gives a bound.
"""
