"""Entry point of `python -m ragfm`."""

from ragfm.cli import main

if __name__ == "__main__":
    main()
