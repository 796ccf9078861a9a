"""The front door in a checkout: `python cli.py run --disable mtp` is `dsv3-ablate run --disable mtp`."""

from ablate.cli import main

if __name__ == "__main__":
    main()
