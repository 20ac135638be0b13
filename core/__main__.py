"""`python -m treadle`: the command line under any interpreter, whatever its PATH."""

from treadle.cli import main

if __name__ == "__main__":
    main()
