# Every target installs what it needs first (.ci/install) and works on a bare Debian 12, as root or through sudo.
#
#   make demo       a pool, a mount, a disk image in and out, each step shown with the command to type
#   make test       the tests: about twenty minutes on two cores
#   make coverage   the tests, and which lines and branches they run, daemons and keepers included; twice as long
#   make test-s3    object pools on a real S3 server, Ceph's radosgw, with a cluster of its own
#   make test-ceph  pools in Ceph, on a real cluster of its own
#   make check      format, lint, types, tests: the one gate, what CI runs
#   make bench      every figure against qemu-storage-daemon's exports and a raw file (ARGS="--rows ...")
#   make fuzz       random calls on one node and three, without a kernel on each pool and catalog, in the core    MINUTES=10
#   make fuzz-bytes what is parsed, under atheris where that installs, else at random    MINUTES=10 TARGET=records
#   make simulate   several nodes over a lossy network, clock and catalog   SEEDS=1-500; MUTANT=all: the seeds that find planted bugs
#   make mutants    known-bad changes planted one at a time; which tests notice         ARGS="channel"
#   make powercut   states in which unsynced writes are lost or torn               ROUNDS=500
#   make crash-states every state a power cut may leave of all small histories     MINUTES=10 LENGTH=3
#   make crash      kill -9 of daemon and keeper under writers                     ROUNDS=50
#   make survive    daemons and keepers die under fio, a guest, random operations; a table of pauses    ROUNDS=200
#   make soak       three nodes, guests, snapshots, kills, cut networks; memory and descriptors as a picture   HOURS=1
#   make wheel      the built wheel, installed by itself, under copied tests
#   make install    into HOME_DIR=/opt/vdiskfs, with links in BIN, mount.vdiskfs in SBIN and a unit in UNITS; as root
#   make bare       demo and test inside a fresh Debian 12 made by debootstrap
#   make systemd    the unit, its descriptor store and fstab under a real systemd, likewise

PYTHON ?= python3
PY := .venv/bin/python
SEED ?=
LONG := -o faulthandler_timeout=0 $(if $(SEED),--seed=$(SEED))

FUZZED := tests/calls tests/model tests/metadata tests/fusefs/test_fuse_abi.py
FUZZED_TESTS := 12

.PHONY: demo test coverage test-s3 test-ceph check format lint types bench fuzz fuzz-bytes simulate mutants powercut crash-states crash survive soak wheel bare systemd clean install install-run install-test install-s3 install-ceph

install-run install-test install-s3 install-ceph:
	@.ci/install $(@:install-%=%) $(PYTHON)

demo: install-run
	@$(PY) -m tools.demo $(ARGS)

test: install-test
	$(PY) -m pytest -n auto --maxprocesses=4 --dist loadfile $(ARGS)

COVERAGE := .build/coverage
coverage: install-test
	rm -rf $(COVERAGE) && mkdir -p $(COVERAGE)
	@passed=0; COVERAGE_FILE=$(CURDIR)/$(COVERAGE)/data $(PY) -m coverage run -m pytest -n auto --maxprocesses=4 --dist loadfile \
		-o faulthandler_timeout=900 $(ARGS) || passed=$$?; \
	(cd $(COVERAGE) && COVERAGE_FILE=data ../../$(PY) -m coverage combine --quiet --rcfile=../../pyproject.toml) && \
	export COVERAGE_FILE=$(COVERAGE)/data && $(PY) -m coverage report && \
	$(PY) -m coverage json --quiet -o $(COVERAGE)/report.json && $(PY) -m tests.coverage_floor $(COVERAGE)/report.json && \
	exit $$passed

test-s3: install-test install-s3
	$(PY) -m pytest tests/s3 $(ARGS)

test-ceph: install-test install-ceph
	$(PY) -m pytest tests/ceph $(ARGS)

lint: install-test
	$(PY) -m ruff check .

format: install-test
	$(PY) -m ruff format --check .

types: install-test
	$(PY) -m mypy

check: format lint types test

bench: install-test
	$(PY) -m tools.cli bench $(ARGS)

fuzz: MINUTES ?= 10
fuzz: install-test
	$(PY) -m pytest -s $(LONG) --seconds=$$(($(MINUTES) * 60 / $(FUZZED_TESTS))) --hypothesis-profile=long $(FUZZED) $(ARGS)

fuzz-bytes: MINUTES ?= 10
fuzz-bytes: install-test
	@$(PY) -c "import atheris" 2>/dev/null || $(PY) -m pip install --quiet --only-binary atheris --editable ".[fuzz]" || \
		echo "atheris does not install here: inputs at random, not guided by coverage"
	$(PY) -m tests.fuzzing.driver --minutes=$(MINUTES) $(addprefix --target=,$(TARGET)) $(if $(SEED),--seed=$(SEED)) $(ARGS)

simulate: SEEDS ?= 1-500
simulate: install-test
	PYTHONHASHSEED=0 $(PY) -m tests.simulation.run $(SEEDS) $(MUTANT)

mutants: install-test
	$(PY) -m tests.mutants.run $(ARGS)

powercut: ROUNDS ?= 500
powercut: install-test
	$(PY) -m pytest tests/crash/test_power_cut.py --rounds=$(ROUNDS) $(LONG) $(ARGS)

crash-states: MINUTES ?= 10
crash-states: LENGTH ?= 3
crash-states: install-test
	$(PY) -m tests.crash.search --minutes=$(MINUTES) --length=$(LENGTH) $(if $(SEED),--seed=$(SEED)) $(ARGS)

crash: ROUNDS ?= 50
crash: install-test
	$(PY) -m pytest tests/crash/test_kill.py tests/crash/test_kill_verbs.py --rounds=$(ROUNDS) $(LONG) $(ARGS)

survive: ROUNDS ?= 200
survive: install-test
	$(PY) -m pytest -s tests/crash/test_survival.py tests/crash/test_nodes_under_kills.py tests/guest/test_guest.py tests/mount/test_upgrade.py \
		-k "die or upgrades_under" --rounds=$(ROUNDS) $(LONG) $(ARGS)

soak: HOURS ?= 1
soak: install-test
	$(PY) -m tests.soak.run $(HOURS) $(ARGS)

WHEEL := .build/wheel
wheel: install-test
	rm -rf $(WHEEL) && mkdir -p $(WHEEL)
	$(PY) -m pip wheel --quiet --no-deps --wheel-dir $(WHEEL) .
	$(PYTHON) -m venv $(WHEEL)/venv
	$(WHEEL)/venv/bin/python -m pip install --quiet "$$(ls $(WHEEL)/*.whl)[test]"
	cp -r tests pyproject.toml $(WHEEL)/
	cd $(WHEEL) && venv/bin/python -m pytest --ignore=tests/test_structure.py --ignore=tests/crash --ignore=tests/guest $(ARGS)

HOME_DIR ?= /opt/vdiskfs
BIN ?= /usr/local/bin
SBIN ?= /sbin
UNITS ?= /etc/systemd/system
install:
	$(PYTHON) -m venv $(HOME_DIR)
	$(HOME_DIR)/bin/python -m pip install --quiet --upgrade .
	install -d $(BIN) $(SBIN) $(UNITS)
	ln -sf $(HOME_DIR)/bin/vdiskfs $(BIN)/vdiskfs
	ln -sf $(HOME_DIR)/bin/mount.vdiskfs $(SBIN)/mount.vdiskfs
	sed 's|@BIN@|$(BIN)|' tools/service/vdiskfs@.service > $(UNITS)/vdiskfs@.service
	@echo "installed. Mounts that serve already: vdiskfs upgrade MOUNTPOINT, or systemctl reload vdiskfs@NAME"
	@! [ -e /etc/updatedb.conf ] || grep -q fuse.vdiskfs /etc/updatedb.conf || \
		echo "keep updatedb out of the mounts: add fuse.vdiskfs to PRUNEFS in /etc/updatedb.conf"

bare:
	@.ci/install bare
	tests/bare_machine.sh $(ARGS)

systemd:
	@.ci/install bare
	tests/systemd_machine.sh

clean:
	rm -rf .venv .build build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
