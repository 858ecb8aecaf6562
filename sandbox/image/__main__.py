"""Entry of the container: ``python3 -I -B -X utf8 /opt/cloche``; with an argument for a plugin that has an image of its own."""

import sys

from cloche_guest import command, main

if len(sys.argv) > 1:
    command.main(sys.argv[1])
main.main()
