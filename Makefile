# Every verb of the project; `make` lists them.
#
# The environments are made from the lock files (hashes included) when they are first needed, and
# again when a lock file changes. Settings: PYTHON=python3.12 (which Python), PORT=9000 (for run).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEPLOY_VENV := .venv-deploy
DOCS_VENV := .venv-docs

TEST_PACKAGES := haproxy postgresql pgbackrest varnish varnish-modules nginx wrk chromium prometheus prometheus-postgres-exporter ccache gcc

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help: ## List the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: packages $(VENV)/.dev $(DEPLOY_VENV)/.deploy ## Make all that is needed to work on the project (packages as root)
	@.ci/commit-subjects --hook

.PHONY: run
run: $(VENV)/.run ## Serve on http://127.0.0.1:8081 with a database in .poky (PORT=9000 for another port)
	@POKY_HOME=$${POKY_HOME:-$(CURDIR)/.poky} exec $(BIN)/poky serve $(if $(PORT),--port $(PORT))

.PHONY: demo
demo: $(VENV)/.dev ## Real records in, back, and changed: what Poky does, in a minute
	@$(BIN)/python -m tests.demo

# Tests mostly wait: two for each core run beside each other, and those that measure time or CPU
# afterwards, one by one.
TOGETHER = $(BIN)/pytest -q --numprocesses $(shell expr 2 \* $$(nproc)) --dist worksteal
ALONE = $(BIN)/pytest -q

.PHONY: check
check: lint packages $(DEPLOY_VENV)/.deploy ## Lint and the fast tests: two minutes
	$(TOGETHER) -m "not slow and not alone" --schema partitioned

.PHONY: test
test: lint lint-playbooks packages ## Everything that is tested on every change: below 25 minutes
	$(TOGETHER) -m "not alone" --durations 20
	$(ALONE) -m alone
	$(MAKE) molecule

# Scenarios of Molecule with their Debian: those of every change, and the others. LONG=yes: all of
# their tests; KEEP=yes: the machines stay.
MOLECULE := default@debian-12 rolling@debian-13
MOLECULE_MORE := default@debian-13 operations@debian-12 hosts@debian-13 rolling@debian-12 failover@debian-13 adoption@debian-13 major@debian-13 backup@debian-13 shards@debian-13

.PHONY: molecule
molecule: $(DEPLOY_VENV)/.deploy $(VENV)/.dev ## Deploy to machines made for it, and look (SCENARIO=rolling@debian-13)
	tests/molecule/run $(or $(SCENARIO),$(MOLECULE))

.PHONY: molecule-all
molecule-all: $(DEPLOY_VENV)/.deploy $(VENV)/.dev ## The same with every scenario, on Debian 12 and 13: about an hour
	LONG=yes tests/molecule/run $(MOLECULE) $(MOLECULE_MORE)

.PHONY: schema-snapshot
schema-snapshot: $(VENV)/.dev ## Record the public schema and the contract (tests/snapshots) after a change that is meant
	REFRESH=1 $(BIN)/pytest -q tests/test_snapshot.py -k recorded

.PHONY: bench
bench: $(VENV)/.dev packages ## Measure Poky against its yardsticks (SUITE="get put", RECORD=1: compare with this run from now on)
	@$(BIN)/python -m tests.bench $(SUITE) $(if $(LARGE),--large) $(if $(RECORD),--record)

.PHONY: capacity
capacity: $(VENV)/.dev ## Write the capacity model of docs/scale.md anew, from the recorded bench
	@$(BIN)/python -m tests.bench.capacity

.PHONY: coherence
coherence: $(VENV)/.dev packages ## Prove that no read is stale, whatever fails (MINUTES=60 FAULT=… SABOTAGE=… PAGE=yes SHARDS=3 CLUSTER=yes)
	@$(BIN)/python -m tests.coherence

.PHONY: abuse
abuse: $(VENV)/.dev packages ## Try what strangers may try, with a table of figures (PART="memory" DOOR="D N" SHORT=1)
	@$(BIN)/python -m tests.abuse

.PHONY: mutants
mutants: $(VENV)/.dev packages ## Change one thing at a time and see whether a test notices (COUNT=20 SEED=1 ONLY="api/names api/found:12" JOBS=2)
	@$(BIN)/python -m tests.mutants

.PHONY: deploy
deploy: $(DEPLOY_VENV)/.deploy ## Deploy the whole stack to a machine made here (as root; ARGS=--check for a plan)
	$(PLAYBOOK) playbooks/deploy.yml $(ARGS)
	@echo "http://$$(playbooks/files/machine address poky-development)/"

.PHONY: bucket
bucket: $(DEPLOY_VENV)/.deploy ## Make a bucket there (BUCKET=name)
	@[ -n "$(BUCKET)" ] || { echo "Which bucket? make bucket BUCKET=name" >&2; exit 2; }
	$(PLAYBOOK) playbooks/buckets.yml -e poky_bucket=$(BUCKET) $(ARGS)

.PHONY: undeploy
undeploy: $(DEPLOY_VENV)/.deploy ## Remove that machine and everything on it
	$(PLAYBOOK) playbooks/teardown.yml $(ARGS)

PLAYBOOK = $(DEPLOY_VENV)/bin/ansible-playbook -i inventories/development

.PHONY: lint
lint: $(VENV)/.dev ## Check style, types and spelling
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/yamllint --strict .
	$(BIN)/codespell $$(git ls-files ':!requirements*.txt')
	$(BIN)/shellcheck $$(git grep -lE '^#!/bin/(ba)?sh')
	.ci/commit-subjects

.PHONY: lint-playbooks
lint-playbooks: $(DEPLOY_VENV)/.deploy ## Check roles, playbooks and inventories (ansible-lint, profile production)
	ANSIBLE_INVENTORY=inventories/development $(DEPLOY_VENV)/bin/ansible-lint --offline

.PHONY: docs
docs: $(DOCS_VENV)/.docs ## Build the documents as a site into build/site, every link checked
	rm -rf build/site
	$(DOCS_VENV)/bin/sphinx-build -W --keep-going -q docs build/site
	cp build/site/README.html build/site/index.html

.PHONY: wheel
wheel: $(VENV)/.dev ## Build the wheel and the source archive into dist/, from what git tracks
	@rm -rf build/tree && .ci/tracked build/tree
	$(BIN)/python -m build --no-isolation --outdir dist build/tree

.PHONY: collection
collection: $(DEPLOY_VENV)/.deploy ## Build the Ansible collection poky.poky, wheels included, into dist/
	$(DEPLOY_VENV)/bin/python .ci/collection.py

.PHONY: release
release: $(VENV)/.dev $(DEPLOY_VENV)/.deploy ## Tag the release that CHANGELOG.md describes, and build all that is published
	.ci/release check
	$(MAKE) wheel collection
	.ci/release tag

.PHONY: venv
venv: $(VENV)/.dev ## Make the environment of the service, its tests and linters (.venv)

.PHONY: packages
packages: ## Install the Debian packages that the tests need (as root; starts no service)
	@.ci/install-packages "the tests use them" $(TEST_PACKAGES)

.PHONY: lock
lock: $(VENV)/.dev ## Write the lock files again from pyproject.toml (UPGRADE=--upgrade for newer versions)
	$(LOCK) pyproject.toml -o requirements.txt
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["embedded"], sep="\n")' \
	  | $(LOCK) - -c requirements.txt -o requirements-embedded.txt
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["client"], sep="\n")' \
	  | $(LOCK) - -c requirements-dev.txt -o requirements-client.txt
	$(LOCK) --group build -c requirements.txt -o requirements-build.txt
	$(LOCK) --group dev -c requirements.txt -c requirements-embedded.txt -c requirements-build.txt -o requirements-dev.txt
	$(LOCK) requirements-deploy.in -o requirements-deploy.txt
	$(LOCK) requirements-docs.in -o requirements-docs.txt

LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes $(UPGRADE) \
  --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock"

.PHONY: clean
clean: ## Remove what was built, the environments included; the database in .poky stays
	rm -rf $(VENV) $(DEPLOY_VENV) $(DOCS_VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.poky/*' -prune -exec rm -rf {} +


# The environments. A stamp inside each says that it is complete.

PIP_INSTALL = -m pip install --quiet --disable-pip-version-check --require-hashes

$(VENV)/.made $(DEPLOY_VENV)/.made $(DOCS_VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'Poky needs Python 3.11 or newer; say which: make PYTHON=/path/to/python3' >&2; exit 1; }
	@# Debian keeps the part of Python that makes environments in a package of its own.
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || .ci/install-packages "Python needs it to make environments" \
	  $$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
	$(PYTHON) -m venv $(@D)
	@touch $@

$(VENV)/.run: $(VENV)/.made pyproject.toml requirements.txt requirements-embedded.txt requirements-build.txt
	$(BIN)/python $(PIP_INSTALL) -r requirements.txt -r requirements-embedded.txt -r requirements-build.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.run requirements-dev.txt
	$(BIN)/python $(PIP_INSTALL) -r requirements-dev.txt
	@touch $@

$(DEPLOY_VENV)/.deploy: $(DEPLOY_VENV)/.made requirements-deploy.txt
	$(DEPLOY_VENV)/bin/python $(PIP_INSTALL) -r requirements-deploy.txt
	@touch $@

$(DOCS_VENV)/.docs: $(DOCS_VENV)/.made requirements-docs.txt
	$(DOCS_VENV)/bin/python $(PIP_INSTALL) -r requirements-docs.txt
	@touch $@
