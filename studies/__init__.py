"""The built-in studies: a folder each, with the question, the configuration it varies, and notes.

It must not know the code that runs them; there is nothing to import here.
"""
