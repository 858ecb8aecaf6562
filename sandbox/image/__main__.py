"""Entry of the container: ``python3 -I -B -X utf8 /opt/cloche``, with ``cells`` at level ``namespace``."""

import sys

if sys.argv[1:] == ["cells"]:
    from cloche_guest.cell_agent import main
else:
    from cloche_guest.main import main

main()
