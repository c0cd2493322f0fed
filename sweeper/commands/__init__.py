"""What each verb of the command line does, in terms of the app's adapters.

It must not know how the command line is parsed, or which adapters it was given.
"""
