# SPDX-License-Identifier: MIT
# The front door: every target sets up what it needs on Debian 12 and does its job.
#
#   make            build the library, the targets and the command line
#   make demo       the main job on real input, in a guest or on this kernel
#   make test       all tests that CI runs
#   make bench      figures beside the kernel's own drivers
#   make help       the rest

BUILD ?= build
KERNEL ?= 6.12
DRIVER ?= intree
ONLY ?=

BUILD_PACKAGES = gcc meson ninja-build pkg-config libc6-dev liburing-dev libjson-c-dev \
	libnbd-dev zlib1g-dev libzstd-dev
TEST_PACKAGES = clang clang-format libclang-rt-14-dev python3 fio e2fsprogs xfsprogs btrfs-progs \
	fdisk dmsetup iproute2 nbdkit qemu-utils mandoc git udev

.PHONY: all build setup setup-build setup-test demo test check bench driver conform check-targets \
	check-zero-copy check-driver selftests install format clean help

all: build

build: setup-build
	@test -f $(BUILD)/build.ninja || meson setup $(BUILD) >/dev/null
	@ninja -C $(BUILD) --quiet

setup-build:
	@scripts/need $(BUILD_PACKAGES)

setup-test: setup-build
	@scripts/need $(TEST_PACKAGES)
	@vm/setup

setup: setup-test

demo: build
	@scripts/demo

# What CI runs: a quarter of an hour. `make check` runs every suite there is.
CI_SUITES = 'unit-*' cli-host 'cli-life-*' 'cli-refusals-*' 'guest-*-612' guest-doc 'guest-*-72' \
	'!guest-kills-*' '!guest-filesystems-72' nbd qcow2 raid zoned conform-short-61 \
	zero-copy-ways-612 guest-sweep-612-ours

test: build setup-test
	@tests/run $(CI_SUITES)

check: build setup-test
	@tests/run

bench: build setup-test
	@$(if $(filter nbd raid qcow2,$(ONLY)),tests/$(ONLY)/bench,$(if $(filter zero-copy,$(ONLY)),bench/zero-copy --plot docs/plots, \
		bench/run $(if $(ONLY),--only $(ONLY))))

driver:
	@driver/build $(KERNEL)

conform: setup-test
	@tests/conform/run --kernel $(KERNEL) --driver $(DRIVER)

selftests: setup-test
	@tests/selftests/run --kernel $(KERNEL) --driver $(DRIVER)

check-driver: setup-test
	@tests/check-driver $(ONLY)

check-targets: build setup-test
	@test -n '$(ONLY)' || { echo 'make check-targets: say ONLY=nbd, qcow2, stripe, linear, mirror or zoned' >&2; exit 2; }
	@case '$(ONLY)' in \
		stripe|linear|mirror) tests/raid/run --full --only '$(ONLY):*' && tests/run --jobs 1 'raid-$(ONLY)-*' ;; \
		nbd|qcow2) tests/$(ONLY)/run --full && tests/run '$(ONLY)-*' ;; \
		zoned) tests/zoned/run --full && tests/run --jobs 1 zoned-tsan 'zoned-[67]*' ;; \
		*) echo 'make check-targets: there is no proof of $(ONLY); see make help' >&2; exit 2 ;; esac

check-zero-copy: build setup-test
	@tests/run 'zero-copy-*' && tests/zero-copy/matrix

install: build
	@meson install -C $(BUILD)

format:
	clang-format -i include/ubd/*.h include/uapi/*.h lib/*.[ch] $$(find targets cli tests -name '*.[ch]')

clean:
	rm -rf $(BUILD)

help:
	@sed -n 's/^#  *\(make .*\)/\1/p' Makefile
	@echo 'make driver KERNEL=6.1|6.12|7.2           build the kernel module'
	@echo 'make conform KERNEL=... DRIVER=ours|intree   the ABI conformance suite'
	@echo 'make selftests KERNEL=... DRIVER=ours|intree  the kernel'"'"'s own ublk tests'
	@echo 'make check-driver [ONLY=PART]             all proofs of our driver, hours of them'
	@echo 'make check                                every suite, the long ones too'
	@echo 'make check-targets ONLY=nbd|qcow2|stripe|linear|mirror|zoned   all proofs of one target'
	@echo 'make check-zero-copy                      zero copy of our driver on 6.1, 6.12 and 7.2'
	@echo 'make install | format | clean'
