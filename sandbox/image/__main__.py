"""Entry of the container: ``python3 -I -B -X utf8 /opt/cloche``."""

from cloche_guest.main import main

main()
