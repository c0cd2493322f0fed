"""What `sweep init` knows: a script's options as it declares them, and a study file around them.

It must not know how the script is run, or how people are asked.
"""
