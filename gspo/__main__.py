"""`python -m gspo` is the `gspo` command."""

from gspo.cli.main import main

if __name__ == "__main__":
    main()
