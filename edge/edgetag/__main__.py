"""`python -m edgetag`."""

from edgetag.cli import main

main()
