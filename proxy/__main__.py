"""`python -m proxy`."""

from proxy.cli import exit_main

exit_main()
