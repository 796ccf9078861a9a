"""`python -m ablate` is `dsv3-ablate`."""

from ablate.cli import main

if __name__ == "__main__":
    main()
