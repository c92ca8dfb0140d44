"""``python -m tdabench``: the command line."""

from tdabench.cli import main

main()
