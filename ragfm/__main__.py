"""`python -m ragfm`: what `ragfm` is, for programs that start a module."""

from ragfm.cli import main

if __name__ == "__main__":
    main()
