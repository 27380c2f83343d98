# The commands of this project. `make` alone lists them.
PYTEST := .venv/bin/pytest
REPORT ?= pd-report

help:  ## list the commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

env:  ## make the environment in .venv (a second time: nothing to do)
	@scripts/make-env.sh

validate: env  ## bring up the embedded 1P2D cluster, prove it, write the report
	$(PYTEST) --cluster twin --report $(REPORT)

network: env  ## the network validation of the embedded cluster alone
	$(PYTEST) --cluster twin -m network --report $(REPORT)

lint: env  ## ruff and mypy --strict
	.venv/bin/ruff check --no-cache .
	.venv/bin/ruff format --no-cache --check .
	.venv/bin/mypy

unit: env  ## the project's own unit tests
	$(PYTEST) tests/unit -q -n 2 --dist loadfile

scenarios: env  ## hold the harness against every broken twin, and print the table
	.venv/bin/python -m twin.scenarios

scenarios-fast: env  ## the same for one scenario of each kind, without engines
	$(PYTEST) tests/scenarios -m fast -q

e2e: env  ## a short end-to-end run on the embedded cluster
	$(PYTEST) --cluster twin -q --report $(REPORT)/e2e

test: lint unit scenarios-fast e2e  ## everything that must be green before a commit

.PHONY: help env validate network lint unit scenarios scenarios-fast e2e test
