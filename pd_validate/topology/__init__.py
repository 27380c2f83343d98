"""Bring the service up on the hosts, know when it is ready, fetch its logs, take it down."""
