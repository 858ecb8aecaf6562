"""Entry of the ``cloche`` program and of ``python -m cloche``."""

from __future__ import annotations

from cloche.cli.root import main

if __name__ == "__main__":
    main()
