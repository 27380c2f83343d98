# The commands of this project. `make` alone lists them.
PYTEST := .venv/bin/pytest
REPORT ?= pd-report

help:  ## list the commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

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

kill-matrix: env  ## whoever dies in whatever phase of a run: what is left; real engines, half an hour; writes docs/kill-matrix.md
	.venv/bin/python -m twin.kills --engine vllm --write docs/kill-matrix.md

kills: env  ## some cells of it
	$(PYTEST) tests/kills -q

scenarios-fast: env  ## the same for one scenario of each kind, without engines
	$(PYTEST) tests/scenarios -m fast -q

e2e: env  ## a short end-to-end run on the embedded cluster
	$(PYTEST) --cluster twin -q --report $(REPORT)/e2e

guide-env:  ## make a second environment in .venv-guide: vLLM 0.10.1.1 on CPU
	@scripts/make-guide-env.sh

GUIDE := PD_TWIN_PYTHON=$(CURDIR)/.venv-guide/bin/python

test-guide-version: env guide-env  ## the connector on the guide's vLLM 0.10.1.1: contract, then live 1P1D
	.venv-guide/bin/python -m pytest tests/unit/connector -q -p no:cacheprovider
	$(GUIDE) $(PYTEST) --cluster twin:twin-guide-1p1d --audit full -q --report $(REPORT)/guide

prove-kv: env  ## 200 requests, twice: every answer, every byte of KV, back to zero
	$(PYTEST) --cluster twin --audit full tests/proofs/test_kv_requests.py -q --report $(REPORT)/kv
	$(PYTEST) --cluster twin:twin-1p2d-prefix-cache --audit full tests/proofs/test_kv_requests.py -q --report $(REPORT)/kv-prefix

prove-kv-faults: env  ## every KV fault in every phase on one live twin, as a table
	$(PYTEST) tests/proofs/test_kv_faults.py --allow-faults -q

test: lint unit kills scenarios-fast e2e  ## everything that must be green before a commit

.PHONY: help env guide-env test-guide-version prove-kv prove-kv-faults validate network lint unit scenarios kill-matrix kills scenarios-fast e2e test
