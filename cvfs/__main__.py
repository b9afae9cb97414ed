"""`python -m cvfs` is `cvfs`."""

from cvfs.cli import main

main()
