"""What the command line does, one module for each kind of command; `cli.py` reads the arguments."""
