"""The command line; each file is one command with NAME, SUMMARY, EXAMPLE, add_arguments and run.

Heavy imports stay inside `run`, so that `medgraft --help` answers at once.
"""
