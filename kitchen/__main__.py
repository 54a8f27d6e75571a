"""`python -m kitchen`: the command line."""

from kitchen.cli import main

main()
