# Every command below is safe to repeat; the first ones set .venv up when something changed.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test faults docs readme notebooks inputs versions audit lab

help:    ## list these targets
	@sed -n 's/^\([a-z]*\): .*## \(.*\)/make \1\t\2/p; s/^\([a-z]*\):  *## \(.*\)/make \1\t\2/p' Makefile | expand -t 14

setup: $(READY)    ## create .venv and install the package with its development tools
	@echo "setup: .venv is ready"

$(READY): settings.ini constraints.txt setup.py tools/setup.sh
	@PYTHON="$(PYTHON)" bash tools/setup.sh
	@touch $@

demo: setup    ## run the whole method on the embedded scenes into runs/demo
	$(BIN)/bidirseg run demo --run-dir runs/demo --jobs 2

test: setup    ## export, clean, every notebook and every test
	@$(BIN)/python tools/test.py

faults: setup    ## break the small pipeline hundreds of times, an hour; ONLY=power for one kind, SEED=1 for others
	@cd tests && ../$(BIN)/python -m faults --seed $(or $(SEED),0) $(if $(ONLY),--only $(ONLY)) \
	    --out ../nbs/results/faults-$(or $(SEED),0).json

docs: setup    ## build the site from the notebooks into _docs
	@$(BIN)/python tools/docs.py

readme: setup    ## write README.md from nbs/index.ipynb
	@$(BIN)/python tools/readme.py

notebooks: demo    ## execute the method's notebooks on the demo's run and keep what they show
	@$(BIN)/python tools/parameters.py
	@$(BIN)/python tools/notebooks.py runs/demo

inputs: setup    ## describe a folder of every kind and print what becomes of each
	@$(BIN)/jupyter nbconvert --log-level=ERROR --to notebook --execute --inplace nbs/tutorials/01_inputs.ipynb
	@$(BIN)/nbdev_clean --fname nbs/tutorials/01_inputs.ipynb
	@$(BIN)/jupyter nbconvert --log-level=ERROR --to markdown --stdout nbs/tutorials/01_inputs.ipynb | grep '^| '

versions: setup    ## test the lowest and the highest versions of the dependencies on each Python (uv, disk, hours)
	@$(BIN)/python tools/versions.py

audit:    ## look the tested versions up among known vulnerabilities (pip-audit, which asks pypi.org)
	@$(PYTHON) -m venv --clear build/audit && build/audit/bin/pip install -q pip-audit
	@build/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

lab: setup    ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab nbs $(if $(filter 0,$(shell id -u)),--allow-root)   # containers often have no other user
