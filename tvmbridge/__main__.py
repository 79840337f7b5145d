"""`python -m tvmbridge` is the `tvmbridge` command."""

from tvmbridge.cli import main

if __name__ == "__main__":
    main()
