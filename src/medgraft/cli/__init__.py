"""The command line: one file per command, with NAME, SUMMARY, EXAMPLE, add_arguments and run.

Heavy imports stay inside `run`, so that `medgraft --help` is fast.
"""
