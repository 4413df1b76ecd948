# The two commands: `make demo` and `make test`. ARGS="…" passes arguments on. .venv is made of BASE_PYTHON, the first time.
VENV        := .venv
PYTHON      := $(VENV)/bin/python
BASE_PYTHON ?= python3
ARGS        ?=
EXTRA       ?= cpu
export PREFLOOP_STARTED_AT := $(shell date +%s.%N)

.DEFAULT_GOAL := help
.PHONY: help demo up smollm kafka postgres s3 prometheus chaos test check format docs bench bench-gateway bench-engines bench-fleet bench-swap bench-leak \
	bench-outage bench-choices bench-intake bench-backlog bench-round-beside-traffic bench-offline-gate bench-gate bench-learning \
	bench-ladder bench-claims bench-personal bench-canaries bench-scale k8s-rehearsal screenshots clean install

help:  ## List the commands
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-26s %s\n", $$1, $$2}'

# uv installs in a quarter of pip's time; it does not read pip's find-links, so it is passed on.
$(VENV)/.installed: pyproject.toml
	@command -v $(BASE_PYTHON) >/dev/null || { echo "$(BASE_PYTHON) (3.11 or newer) is needed: install it and run make again"; exit 1; }
	@$(BASE_PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(BASE_PYTHON) is older than 3.11: name a newer one (make BASE_PYTHON=…)"; exit 1; }
	@echo "== Installing into $(VENV) (about 6 GB the first time; later runs start at once)"
	@test -x $(PYTHON) || $(BASE_PYTHON) -m venv $(VENV) || { echo "$(BASE_PYTHON) has no venv module: install your system's python3-venv package"; exit 1; }
	@$(PYTHON) -m pip install -q --disable-pip-version-check uv
	@export UV_FIND_LINKS="$${UV_FIND_LINKS:-$$PIP_FIND_LINKS}"; start=$$(date +%s); \
	$(VENV)/bin/uv pip install -q --python $(PYTHON) -e '.[$(EXTRA)]' --group dev & \
	while kill -0 $$! 2>/dev/null; do test -t 1 && printf '\r   %s s ' $$(($$(date +%s) - start)); sleep 1; done; \
	wait $$! && printf '\r== Installed in %s s\n' $$(($$(date +%s) - start))
	@touch $@

install: $(VENV)/.installed  ## Create .venv and install everything

demo: $(VENV)/.installed  ## Serve, ask, learn, canary and promote, with simulated people
	@$(PYTHON) -m prefloop.cli demo $(ARGS)

up: $(VENV)/.installed  ## The same without simulated people (ARGS="--model DIR")
	@$(PYTHON) -m prefloop.cli up $(ARGS)

smollm: $(VENV)/.installed  ## Fetch SmolLM2-135M-Instruct for --model smollm2 (93 MB, once)
	@$(PYTHON) -m prefloop.smollm $(ARGS)

kafka: $(VENV)/.installed  ## A real Kafka broker in the foreground (needs Java 17 and Maven; ARGS="--port N")
	@$(PYTHON) -m prefloop.servers.kafka $(ARGS)

test: $(VENV)/.installed  ## All tests: real vLLM, a real browser where there is one
	@$(PYTHON) -m pytest $(ARGS)

check: $(VENV)/.installed  ## Lint and types
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy

format: $(VENV)/.installed  ## Format and sort imports
	@$(VENV)/bin/ruff check --fix . ; $(VENV)/bin/ruff format .

docs: $(VENV)/.installed  ## Write what is made of the code: settings.md, openapi.json, schemas/, dashboards/, drawings, scale.md, the cluster's rules
	@$(PYTHON) docs/render_settings.py
	@$(PYTHON) docs/render_openapi.py
	@$(PYTHON) docs/render_schemas.py
	@$(PYTHON) docs/render_rollouts.py
	@$(PYTHON) docs/render_dashboards.py
	@$(PYTHON) docs/render_scale.py
	@$(PYTHON) docs/render_monitoring.py

screenshots: $(VENV)/.installed  ## Take the pictures of docs/images: every page, on a desktop, on a phone, dark (needs Chromium)
	@$(PYTHON) -m tests.browser.screenshots $(ARGS)

postgres: $(VENV)/.installed  ## A PostgreSQL on loopback until Ctrl-C, and the settings that use it
	@$(PYTHON) -m prefloop.servers.postgres $(ARGS)

s3: $(VENV)/.installed  ## An S3 server on loopback until Ctrl-C, and the settings that use it (needs Go, once)
	@$(PYTHON) -m prefloop.servers.s3 $(ARGS)

prometheus: $(VENV)/.installed  ## Prometheus and Alertmanager beside the demo, until Ctrl-C (needs Debian's packages)
	@$(PYTHON) -m prefloop.servers.prometheus $(ARGS)

bench: $(VENV)/.installed  ## Measurements, one JSON line each
	@for bench in bench/*.py; do [ -e "$$bench" ] || continue; $(PYTHON) "$$bench" $(ARGS) || exit 1; done

bench-gateway: $(VENV)/.installed  ## The gateway beside its peers (needs cc; ARGS="--quick" for a look)
	@$(PYTHON) -m bench.gateway $(ARGS)

bench-engines: $(VENV)/.installed  ## One gateway over 1, 2 and 3 engines found by DNS, which die and come (needs cc)
	@$(PYTHON) -m bench.engines $(ARGS)

bench-fleet: $(VENV)/.installed  ## A whole loop on two gateways and three engines, while processes die and a link is cut
	@$(PYTHON) -m bench.fleet $(ARGS)

bench-swap: $(VENV)/.installed  ## Hot swaps in a row on real vLLM under load (ARGS="--swaps N")
	@$(PYTHON) -m bench.swap $(ARGS)

bench-canaries: $(VENV)/.installed  ## Bad canaries on real vLLM, each stopped by its gate, and a good one promoted
	@$(PYTHON) -m bench.canaries $(ARGS)

bench-leak: $(VENV)/.installed  ## What the gateway keeps of 100,000 requests, good and bad (needs cc)
	@$(PYTHON) -m bench.leak $(ARGS)

bench-choices: $(VENV)/.installed  ## Durable choices a second and their way to the trainer (needs cc, PostgreSQL)
	@$(PYTHON) -m bench.choices $(ARGS)

bench-intake: $(VENV)/.installed  ## Imported pairs taken in by the trainer, a CPU second, at two sizes
	@$(PYTHON) -m bench.intake $(ARGS)

bench-backlog: $(VENV)/.installed  ## 60,000 imported pairs: import, intake, reward pass and round, on real vLLM
	@$(PYTHON) -m bench.backlog $(ARGS)

bench-round-beside-traffic: $(VENV)/.installed  ## Serving while a round trains, against idle, on real vLLM
	@$(PYTHON) -m bench.round_beside_traffic $(ARGS)

bench-personal: $(VENV)/.installed  ## What forty choices of one person change on SmolLM2, four tastes (hours; --quick: one)
	@$(PYTHON) -m bench.personal $(ARGS)

bench-outage: $(VENV)/.installed  ## Completions while Kafka is down or hangs, or PostgreSQL is down (needs cc)
	@$(PYTHON) -m bench.outage $(ARGS)

bench-offline-gate: $(VENV)/.installed  ## Broken and healthy checkpoints before the offline gate (ARGS="--quick" for a look)
	@$(PYTHON) -m bench.offline_gate $(ARGS)

bench-gate: $(VENV)/.installed  ## How often the rollout gate errs, and how many users it needs (ARGS="--quick" for a look)
	@$(PYTHON) -m bench.gate $(ARGS)

bench-oracle: $(VENV)/.installed  ## DPO, reward, SFT and PPO beside TRL, step by step: do the numbers agree?
	@$(PYTHON) -m bench.oracle $(ARGS)

bench-trainer: $(VENV)/.installed  ## Speed and memory of rounds and reward updates beside TRL (ARGS="--quick" for a look)
	@$(PYTHON) -m bench.trainer $(ARGS)

bench-learning: $(VENV)/.installed  ## Choices to a quality, by arm, world and noise (hours, resumable; ARGS="--quick")
	@$(PYTHON) -m bench.learning $(ARGS)

bench-ladder: $(VENV)/.installed  ## 3,000 choices in a row: every promoted checkpoint examined (ARGS="--drift")
	@$(PYTHON) -m bench.learning.ladder $(ARGS)

bench-claims: $(VENV)/.installed  ## What is said of learning from preferences: does it hold here?
	@$(PYTHON) -m bench.learning.claims $(ARGS)

bench-scale: $(VENV)/.installed  ## Unit costs here, and what 10,000 requests/s and 10 million choices/day would need
	@$(PYTHON) -m bench.scale $(ARGS)

k8s-rehearsal: $(VENV)/.installed  ## Install, upgrade, drain, lose nodes on a real control plane, simulated nodes (needs Go, Maven)
	@$(PYTHON) -m k8s.rehearsal $(ARGS)

chaos: $(VENV)/.installed  ## kill -9 of everything under load, and who lost what (ARGS="--seed N --kills 200")
	@$(PYTHON) -m bench.chaos $(ARGS)

clean:  ## Remove .venv and the state directory
	rm -rf $(VENV) state build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
