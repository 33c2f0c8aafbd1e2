# `make` lists the targets. PYTHON=python3.12 names the interpreter that .venv is made with.
.DEFAULT_GOAL := help
.PHONY: help demo test lint unit molecule e2e venv clean
PYTHON ?= python3
export PYTHON

help:
	@sed -n 's/^\([a-z0-9]*\):.*## /  make \1\t/p' Makefile | expand -t 20

demo: ## Virtual devices, a testbed on them, a trained model: nothing but this machine is needed
	@scripts/venv
	@scripts/demo

test: ## Every test, each part timed; what the tests made is removed
	@scripts/venv dev
	@.venv/bin/python scripts/run_tests.py lint molecule e2e,purge+unit

lint: ## Style, types and rules
	@scripts/venv dev
	@.venv/bin/python scripts/run_tests.py lint

unit: ## Unit and contract tests: no Docker, no SSH
	@scripts/venv dev
	@.venv/bin/python scripts/run_tests.py unit

molecule: ## The roles on virtual devices
	@scripts/venv dev
	@.venv/bin/python scripts/run_tests.py molecule

e2e: ## The command line and real training on virtual devices
	@scripts/venv dev
	@.venv/bin/python scripts/run_tests.py e2e purge

venv: ## .venv with the tools of the tests
	@scripts/venv dev

clean: ## Remove .venv and caches; keys, results and testbeds stay
	rm -rf .venv dist .*_cache
	find . -name __pycache__ -not -path './.fltestbed/*' -prune -exec rm -rf {} +
