"""Entry of the container: ``python3 -I -B -X utf8 /opt/cloche``; with a JSON object for a plugin that has an image of its own, with ``gate``
under gVisor, with ``cells`` at level ``namespace``."""

import sys

if sys.argv[1:] == ["cells"]:
    from cloche_guest import cell_agent

    cell_agent.main()

from cloche_guest import command, main

if len(sys.argv) > 1 and sys.argv[1] != main.GATE_WORD:
    command.main(sys.argv[1])
main.main()
