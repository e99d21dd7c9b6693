# On a fresh Debian 12 with python3, python3-venv and make: `make demo`, `make test`.

PYTHON ?= python3
ARCH ?= arm64
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
INSTALL := $(PIP) --editable
# A real broker, a sound server to hear, a witness of all that is written, judges of units and scripts, a browser: tests
# that need one that is absent skip.
SYSTEM_PACKAGES := mosquitto mosquitto-clients pulseaudio pulseaudio-utils libasound2-plugins libportaudio2 strace iproute2 \
  systemd udev shellcheck openssl chromium chromium-driver
N_INSTALLED := dpkg-query --show --showformat='$${db:Status-Abbrev}\n' $(SYSTEM_PACKAGES) 2>/dev/null | grep -c '^ii'
EMULATION_PACKAGES := qemu-user-static debootstrap ca-certificates wget

.NOTPARALLEL:
.PHONY: demo test test-system soak lint format docs bench starter schema archive system-packages emulators clean

demo: $(VENV)/demo.stamp
	$(BIN)/edgetag demo

# A process for every core; each has one thread for its sums.
test: $(VENV)/test.stamp system-packages lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto --maxprocesses 4 --dist loadfile

# A real systemd, and other processors, emulated, and what else takes long: an hour, most of it QEMU's.
test-system: emulators $(VENV)/test.stamp system-packages
	$(BIN)/pytest -q -s -m system tests

# A week of audio with thousands of faults in virtual time, and days of a broker that dies: about an hour.
soak: $(VENV)/test.stamp
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -s -m soak tests/system

lint: $(VENV)/test.stamp
	$(BIN)/ruff format --check edge train tests
	$(BIN)/ruff check edge train tests
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(VENV)/test.stamp
	$(BIN)/ruff format edge train tests
	$(BIN)/ruff check --fix edge train tests

# The API, a page a module: build/api/index.html.
docs: $(VENV)/test.stamp
	$(BIN)/python tests/api_docs.py build/api

# edgetag beside librosa, PyTorch and LiteRT, in ten minutes; BENCH="--help" says what else it can do.
bench: $(VENV)/test.stamp system-packages
	$(PIP) --requirement tests/bench/requirements.txt || echo "LiteRT could not be installed; YAMNet will be left out"
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m bench.side_by_side $(BENCH)

# The bundle that ships, anew, in hours: into $(OUT)/bundle, from the local data folder.
OUT ?= starter
starter: $(VENV)/test.stamp
	$(PIP) --editable '.[teach]'
	train/starter.sh "$${EDGETAG_SHARED:-../shared}/audio" "$${EDGETAG_SHARED:-../shared}/peers/yamnet.tflite" $(OUT)

schema: $(VENV)/demo.stamp
	$(BIN)/python -m edgetag.contract deploy/schema

# One file for sensors without internet; ARCH=amd64 for others than the Raspberry Pi's kind.
archive: $(VENV)/demo.stamp
	deploy/archive.sh $(ARCH)

# Only root can install; everybody else goes on without.
system-packages:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && [ "$$($(N_INSTALLED))" != $(words $(SYSTEM_PACKAGES)) ]; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(SYSTEM_PACKAGES) >/dev/null; \
	fi || echo "$(SYSTEM_PACKAGES) could not be installed; tests that need them will skip"

emulators:
	@[ "$$(id -u)" = 0 ] || { echo "make test-system needs root: it installs emulators and makes a chroot for arm64"; exit 1; }
	@[ -x /usr/bin/qemu-aarch64-static -a -x /usr/sbin/debootstrap ] || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	  apt-get install -y -qq --no-install-recommends $(EMULATION_PACKAGES) >/dev/null; }

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("$(PYTHON) is %d.%d; edgetag needs Python 3.11 or later: make PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/demo.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) '.[demo]'
	touch $@

$(VENV)/test.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) '.[demo,train,test]'
	touch $@ $(VENV)/demo.stamp

clean:
	rm -rf build $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
