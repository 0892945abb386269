"""`python -m opsin` is the command `opsin`."""

from __future__ import annotations

from opsin.cli import main

if __name__ == "__main__":
    main()
