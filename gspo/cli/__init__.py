"""The command line: a thin layer, one function per verb."""
