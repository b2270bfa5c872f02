# A virtual environment from requirements.lock, with the extension and a usp program of this tree. Who includes it sets
# ROOT, the root of the repository, and VENV.
PYTHON ?= python3

.PHONY: venv native $(VENV)/usp

venv: $(VENV)/made

$(VENV)/made: requirements.lock
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	touch $@

native: venv ## the extension, in place
	cd $(ROOT)/python && $(abspath $(VENV))/bin/python setup.py --quiet build_ext --inplace

$(VENV)/usp: venv
	cd $(ROOT) && go build -o $(abspath $(VENV))/usp ./cmd/usp
