"""`python -m imgclf_nb` is the command `imgclf`, also where no folder of commands is on the PATH.

Written by hand: a notebook that exported it would run it.
"""
import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
