# memvirtd. `make help` lists the targets.
.DEFAULT_GOAL := all
#
# CC=clang works as well; V=1 shows commands; WERROR=0 keeps warnings from stopping the build.

PREFIX ?= /usr/local
DESTDIR ?=
BUILD ?= build
CC ?= gcc
V ?= 0
WERROR ?= 1
SAN ?=

# 0: without libvirt; by default where its headers are.
LIBVIRT ?= $(if $(shell pkg-config --exists libvirt && echo yes),1,0)

PKGS := libsystemd jansson liburcu liburcu-cds libxxhash inih numa $(if $(filter 1,$(LIBVIRT)),libvirt)
DEPS_BUILD := gcc libc6-dev clang libclang-rt-14-dev make pkg-config libsystemd-dev libjansson-dev liburcu-dev \
	libxxhash-dev libinih-dev libnuma-dev libvirt-dev libcunit1-dev
DEPS_TEST := qemu-system-x86 busybox-static cpio zstd xz-utils e2fsprogs socat python3 \
	libvirt-daemon-system libvirt-clients
DEPS := $(DEPS_BUILD) $(DEPS_TEST)

WARN := -Wall -Wextra -Wconversion -Wshadow $(if $(filter 1,$(WERROR)),-Werror)
VERSION := 0.1
CPPFLAGS += -D_GNU_SOURCE -I. -DMEMVIRT_VERSION='"$(VERSION)"'
CFLAGS ?= -O2 -g
# -std, warnings and dependencies are the project's, whatever CFLAGS the user gives.
ALL_CFLAGS = -std=gnu11 $(WARN) $(CFLAGS) $(if $(SAN),-fsanitize=$(SAN) -fno-omit-frame-pointer) \
	-MMD -MP $(PKG_CFLAGS) -pthread
PKG_CFLAGS = $(shell pkg-config --cflags $(PKGS))
PKG_LIBS = -Wl,--as-needed $(shell pkg-config --libs $(PKGS))

Q := $(if $(filter 1,$(V)),,@)
say = $(if $(filter 1,$(V)),@:,@printf '  %-7s %s\n' $(1) $(2))

LIB_DIRS := core vmm ept ksmd balloon
LIBVIRT_NOT := $(if $(filter 1,$(LIBVIRT)),balloon/port_libvirt_none.c,balloon/port_libvirt.c balloon/libvirt_%.c)
LIB_SRC := $(sort $(filter-out $(LIBVIRT_NOT),$(wildcard $(addsuffix /*.c,$(LIB_DIRS)))))
# What the daemon shares with the agent: packets, hashes, and the repair of a window whose executor died.
LIB_AGENT_OBJ := $(patsubst %,$(BUILD)/agent/%.o,exchange_repair packet page_hash page_hash_avx2 pagemap uffd)
LIB_OBJ := $(LIB_SRC:%.c=$(BUILD)/%.o) $(LIB_AGENT_OBJ)
DAEMON_OBJ := $(patsubst %.c,$(BUILD)/%.o,$(sort $(wildcard daemon/*.c)))
CLI_OBJ := $(patsubst %.c,$(BUILD)/%.o,$(sort $(wildcard cli/*.c)))
# Lives inside VMMs; not part of libmemvirt.a. The exchange once more with hooks, for its tests.
AGENT_OBJ := $(patsubst %.c,$(BUILD)/%.o,$(sort $(filter-out agent/preload%,$(wildcard agent/*.c))))
# The same for a VMM that was not built with it: with the interposed calls, and built so that it makes none of them.
PRELOAD_OBJ := $(patsubst %.c,$(BUILD)/preload/%.o,$(sort $(wildcard agent/*.c)))
EXCHANGE_OBJ := $(patsubst %,$(BUILD)/agent/%.o,eligible exchange exchange_back exchange_fold exchange_plan \
	exchange_repair exchange_slots freezer pagemap pins staging uffd)
EXCHANGE_HOOKS_OBJ := $(EXCHANGE_OBJ:$(BUILD)/%=$(BUILD)/hooks/%)
EXCHANGE_TESTS := test_exchange test_exchange_more test_exchange_fold test_pins
UNIT_SRC := $(sort $(filter-out $(if $(filter 1,$(LIBVIRT)),,tests/unit/test_port_libvirt%),$(wildcard tests/unit/test_*.c)))
UNIT_BIN := $(UNIT_SRC:tests/unit/%.c=$(BUILD)/tests/%)
# With agents in processes of their own, and the daemon's side from tests/lib/.
AGENT_TEST_BIN := $(addprefix $(BUILD)/tests/,test_kvm test_walk_kvm tiny-vmm translate-check test_vms test_many_runs)
LIBVIRT_PROBE := $(if $(filter 1,$(LIBVIRT)),$(BUILD)/tests/libvirt-probe)
CHAOS_BIN := $(addprefix $(BUILD)/tests/,chaos soak chaos-vmm)
FUZZ_SRC := $(sort $(wildcard tests/fuzz/fuzz_*.c))
BENCH_LIB_OBJ := $(patsubst %.c,$(BUILD)/%.o,$(sort $(wildcard bench/lib/*.c)))
BENCH_BIN := $(patsubst bench/%.c,$(BUILD)/bench/%,$(sort $(wildcard bench/*.c))) $(BUILD)/bench/overcommit

PROGRAMS := $(BUILD)/memvirtd $(BUILD)/memvirtctl
PRELOAD := $(BUILD)/libmemvirt-agent.so
MAN := $(BUILD)/memvirtd.8 $(BUILD)/memvirtctl.1 $(BUILD)/memvirt.conf.5

.PHONY: all
all: $(PROGRAMS) $(PRELOAD) benches

.PHONY: help
help:
	@echo 'make             build everything into $(BUILD)/'
	@echo 'make demo        set up this machine, then show the program on four real guests (root)'
	@echo 'make check       set up this machine, then run all tests (real guests only as root)'
	@echo 'make check-asan  the same with AddressSanitizer and UBSan, into $(BUILD)-asan/'
	@echo 'make check-tsan  agent and libvirt driver with ThreadSanitizer, into $(BUILD)-tsan/'
	@echo 'make bench       set up, then compare merging with kernel KSM and ksmtuned (root)'
	@echo 'make fuzz        run every fuzzer for FUZZ_SECONDS=$(FUZZ_SECONDS) seconds'
	@echo 'make deps        install the Debian packages that building and testing need (root)'
	@echo 'make install     into PREFIX=$(PREFIX), below DESTDIR'
	@echo 'make clean       remove $(BUILD)/, $(BUILD)-asan/ and $(BUILD)-tsan/'

# ---- setting up ----

.PHONY: deps
deps:
	@if [ "$$(id -u)" != 0 ]; then \
		echo 'make deps must run as root; the command is:'; \
		echo '  apt-get update && apt-get install --no-install-recommends $(DEPS)'; \
		exit 1; \
	fi
	apt-get update
	DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $(DEPS)

# Installs only what is missing.
.PHONY: setup
setup:
	@dpkg-query -W -f '$${Status}\n' $(DEPS) 2>&1 | grep -qv '^install ok installed$$' \
		&& $(MAKE) --no-print-directory deps || true
	@dpkg-query -W $(DEPS) >/dev/null

.PHONY: demo check check-asan check-tsan bench
demo: setup
	$(Q)$(MAKE) --no-print-directory all
	$(Q)BUILD=$(abspath $(BUILD)) tests/e2e/demo.sh

check: setup
	$(Q)$(MAKE) --no-print-directory all unit-tests
	$(Q)BUILD=$(abspath $(BUILD)) tests/run.sh

check-asan: setup
	$(Q)$(MAKE) --no-print-directory BUILD=$(BUILD)-asan SAN=address,undefined all unit-tests
	$(Q)mkdir -p $(BUILD) && ln -sfn $(abspath $(BUILD))/guest $(BUILD)-asan/guest
	$(Q)BUILD=$(abspath $(BUILD)-asan) tests/run.sh

# What runs inside a VMM, and the libvirt driver with a library that its test brings: liburcu, which the daemon's side needs,
# and libvirt are not built for it. Each reason why a report is none stands in tests/tsan.supp. Threads are left alone in
# children that end at once. By clang: gcc does not watch a memset() or memcpy() that it expands in place.
TSAN_SECONDS ?= 5
check-tsan: setup
	$(Q)$(MAKE) --no-print-directory CC=clang BUILD=$(BUILD)-tsan SAN=thread $(TSAN_TESTS:%=$(BUILD)-tsan/tests/%) \
		$(BUILD)-tsan/tests/stress-remap
	$(Q)export TSAN_OPTIONS="suppressions=$(CURDIR)/tests/tsan.supp report_thread_leaks=0 history_size=7"; \
	export BUILD=$(abspath $(BUILD)-tsan) AGENT_SECONDS=$(TSAN_SECONDS); \
	tests/run.sh $(TSAN_TESTS) && $(BUILD)-tsan/tests/stress-remap $(TSAN_SECONDS)
TSAN_TESTS := test_agent test_agent_threads test_exchange test_exchange_more test_exchange_fold \
	$(if $(filter 1,$(LIBVIRT)),test_port_libvirt)

bench: setup
	$(Q)$(MAKE) --no-print-directory all
	$(Q)bench/run.sh $(BUILD)

# ---- fuzzing: everything again by clang, with its instrumentation ----

FUZZ_SECONDS ?= 30

.PHONY: fuzz
fuzz: setup
	$(Q)$(MAKE) --no-print-directory CC=clang BUILD=$(BUILD)/fuzz SAN=fuzzer-no-link,address,undefined \
		$(FUZZ_SRC:tests/fuzz/%.c=$(BUILD)/fuzz/bin/%)
	$(Q)FUZZ_SECONDS=$(FUZZ_SECONDS) tests/fuzz/run.sh $(BUILD)/fuzz

$(BUILD)/bin/fuzz_record: $(BUILD)/bench/lib/policy_run.o
$(BUILD)/bin/fuzz_%: $(BUILD)/tests/fuzz/fuzz_%.o $(BUILD)/libmemvirt.a
	$(call say,LINK,$@)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(ALL_CFLAGS) -fsanitize=fuzzer $(LDFLAGS) -o $@ $(LINKED) $(PKG_LIBS) -lm

# ---- installing ----

.PHONY: install
install: $(PROGRAMS) $(PRELOAD) $(MAN)
	install -d $(DESTDIR)$(PREFIX)/sbin $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/memvirt \
		$(DESTDIR)$(PREFIX)/include $(DESTDIR)$(PREFIX)/share/man/man1 \
		$(DESTDIR)$(PREFIX)/share/man/man5 $(DESTDIR)$(PREFIX)/share/man/man8 \
		$(DESTDIR)$(PREFIX)/share/doc/memvirtd $(DESTDIR)$(PREFIX)/lib/systemd/system \
		$(DESTDIR)/etc/memvirt/policy.d
	install -m 755 $(BUILD)/memvirtd $(DESTDIR)$(PREFIX)/sbin/
	install -m 755 $(BUILD)/memvirtctl $(DESTDIR)$(PREFIX)/bin/
	install -m 755 $(PRELOAD) $(DESTDIR)$(PREFIX)/lib/memvirt/
	install -m 644 agent/memvirt-agent.h $(DESTDIR)$(PREFIX)/include/
	install -m 644 $(BUILD)/memvirtctl.1 $(DESTDIR)$(PREFIX)/share/man/man1/
	install -m 644 $(BUILD)/memvirt.conf.5 $(DESTDIR)$(PREFIX)/share/man/man5/
	install -m 644 $(BUILD)/memvirtd.8 $(DESTDIR)$(PREFIX)/share/man/man8/
	install -m 644 README.md LICENSE docs/*.md conf/policy.d/*.example $(DESTDIR)$(PREFIX)/share/doc/memvirtd/
	test -e $(DESTDIR)/etc/memvirt/memvirt.conf || \
		install -m 644 conf/memvirt.conf $(DESTDIR)/etc/memvirt/memvirt.conf
	sed 's|@PREFIX@|$(PREFIX)|g' conf/memvirtd.service > $(DESTDIR)$(PREFIX)/lib/systemd/system/memvirtd.service

$(BUILD)/memvirt.conf.5: docs/memvirt.conf.5.in $(BUILD)/memvirtd
	$(Q)$(BUILD)/memvirtd --help-config=man > $@.keys
	$(Q)sed -e '/^@KEYS@$$/{r $@.keys' -e 'd}' $< > $@
	$(Q)rm -f $@.keys

$(BUILD)/memvirtd.8 $(BUILD)/memvirtctl.1: $(BUILD)/%: docs/%
	$(Q)mkdir -p $(@D) && cp $< $@

.PHONY: man
man: $(MAN)

.PHONY: clean
clean:
	rm -rf $(BUILD) $(BUILD)-asan $(BUILD)-tsan

# ---- building ----

.PHONY: unit-tests
unit-tests: $(UNIT_BIN) $(AGENT_TEST_BIN) $(CHAOS_BIN) $(BUILD)/tests/stress-remap $(BUILD)/tests/preload-vmm \
	$(LIBVIRT_PROBE)

.PHONY: benches
benches: $(BENCH_BIN)

# Objects first: what of the agent a program links by itself is not taken from the library once more.
LINKED = $(filter-out %.a,$^) $(filter %.a,$^)

$(BUILD)/libmemvirt.a: $(LIB_OBJ)
	$(call say,AR,$@)
	$(Q)rm -f $@ && ar rcs $@ $^

$(BUILD)/memvirtd: $(DAEMON_OBJ) $(BUILD)/libmemvirt.a
	$(call say,LINK,$@)
	$(Q)$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ $(PKG_LIBS) -lm

$(BUILD)/memvirtctl: $(CLI_OBJ) $(BUILD)/libmemvirt.a
	$(call say,LINK,$@)
	$(Q)$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ $(PKG_LIBS)

# Bound when it is loaded (the window must not look symbols up), and for good. No sanitizer: a library that is preloaded
# cannot bring one's runtime with it.
$(PRELOAD) $(PRELOAD_OBJ): override SAN :=
$(PRELOAD): $(PRELOAD_OBJ) agent/preload.map
	$(call say,LINK,$@)
	$(Q)$(CC) $(ALL_CFLAGS) $(LDFLAGS) -shared -Wl,-z,now -Wl,-z,nodelete -Wl,-z,defs \
		-Wl,--version-script=agent/preload.map -o $@ $(PRELOAD_OBJ)

$(BUILD)/bench/replay: $(AGENT_OBJ)

# Python: the modules packed into one program.
$(BUILD)/bench/overcommit: $(wildcard bench/overcommit/*.py)
	$(call say,PACK,$@)
	$(Q)mkdir -p $(@D)
	$(Q)rm -rf bench/overcommit/__pycache__
	$(Q)python3 -m zipapp bench/overcommit -p '/usr/bin/env python3' -o $@

$(BUILD)/bench/%: $(BUILD)/bench/%.o $(BENCH_LIB_OBJ) $(BUILD)/libmemvirt.a
	$(call say,LINK,$@)
	$(Q)$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $(LINKED) $(PKG_LIBS) -lm

$(BUILD)/tests/%: $(BUILD)/tests/unit/%.o $(BUILD)/libmemvirt.a
	$(call say,LINK,$@)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $(LINKED) $(PKG_LIBS) -lcunit -lm

# The guest's code is copied to where nothing but it is: no calls, tables or constants outside of its section.
$(BUILD)/tests/kvm/guest.o: ALL_CFLAGS += -mgeneral-regs-only -fno-jump-tables -fno-builtin -fno-stack-protector \
	-fno-sanitize=all -fcf-protection=none
$(BUILD)/tests/tiny-vmm: $(BUILD)/tests/kvm/tiny_vmm.o $(BUILD)/tests/kvm/guest.o $(AGENT_OBJ)
	$(call say,LINK,$@)
	$(Q)$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^

$(BUILD)/tests/test_walk_kvm: $(BUILD)/tests/kvm/test_walk_kvm.o $(BUILD)/libmemvirt.a
	$(call say,LINK,$@)
	$(Q)$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $(LINKED) $(PKG_LIBS) -lcunit

$(BUILD)/tests/translate-check: $(BUILD)/tests/translate/translate_check.o $(BUILD)/libmemvirt.a
	$(call say,LINK,$@)
	$(Q)$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $(LINKED) $(PKG_LIBS)

$(BUILD)/tests/test_kvm: $(BUILD)/tests/kvm/test_kvm.o
$(BUILD)/tests/test_vms: $(BUILD)/tests/stress/test_vms.o $(AGENT_OBJ)
$(BUILD)/tests/test_many_runs: $(BUILD)/tests/stress/test_many_runs.o $(AGENT_OBJ)
$(addprefix $(BUILD)/tests/,test_kvm test_vms test_many_runs): $(BUILD)/tests/lib/domain.o $(BUILD)/libmemvirt.a
	$(call say,LINK,$@)
	$(Q)$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $(LINKED) $(PKG_LIBS) -lcunit -lm

# The simulator, which benches link as well.
$(BUILD)/tests/test_simulate: $(patsubst %.c,$(BUILD)/%.o,$(sort $(wildcard bench/lib/sim*.c)))

$(addprefix $(BUILD)/tests/,test_agent test_agent_life test_agent_threads test_ksmd_agents test_preload): $(AGENT_OBJ)
$(BUILD)/tests/test_policy_run: $(BUILD)/bench/lib/policy_run.o
$(BUILD)/tests/test_walk_sim: $(patsubst %,$(BUILD)/bench/lib/%.o,guest_made_up guest_space page_runs walk_sim)
$(BUILD)/tests/test_recorder: $(BUILD)/daemon/recorder.o
$(BUILD)/tests/test_preload: | $(PRELOAD) $(BUILD)/tests/preload-vmm
$(patsubst %,$(BUILD)/tests/%,$(EXCHANGE_TESTS)): $(EXCHANGE_HOOKS_OBJ)
$(patsubst %,$(BUILD)/tests/unit/%.o,$(EXCHANGE_TESTS)): CPPFLAGS += -DEXCHANGE_HOOKS

$(BUILD)/tests/stress-remap: $(patsubst %,$(BUILD)/tests/stress/%.o,stress_io stress_owner stress_remap) $(EXCHANGE_OBJ)
	$(call say,LINK,$@)
	$(Q)$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^

$(BUILD)/tests/libvirt-probe: $(BUILD)/tests/libvirt/probe.o $(BUILD)/libmemvirt.a
	$(call say,LINK,$@)
	$(Q)$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ $(PKG_LIBS)

CHAOS_VMM := $(BUILD)/tests/chaos-vmm
CHAOS_VMM_OBJ := $(patsubst %,$(BUILD)/tests/world/%.o,load vmm)
# As foreign to the agent as QEMU is.
$(BUILD)/tests/preload-vmm $(BUILD)/tests/preload/vmm.o $(CHAOS_VMM) $(CHAOS_VMM_OBJ): override SAN :=
$(BUILD)/tests/preload-vmm: $(BUILD)/tests/preload/vmm.o
	$(call say,LINK,$@)
	$(Q)$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ -ldl

$(CHAOS_VMM): $(CHAOS_VMM_OBJ)
	$(call say,LINK,$@)
	$(Q)$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^

$(BUILD)/tests/chaos $(BUILD)/tests/soak: $(BUILD)/tests/%: $(BUILD)/tests/world/%.o \
		$(patsubst %,$(BUILD)/tests/world/%.o,account daemon proc world) $(BUILD)/libmemvirt.a
	$(call say,LINK,$@)
	$(Q)$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $(LINKED) $(PKG_LIBS)

$(BUILD)/tests/stress/exchange_cost.o: CPPFLAGS += -DEXCHANGE_HOOKS
$(BUILD)/tests/exchange-cost: $(BUILD)/tests/stress/exchange_cost.o $(EXCHANGE_HOOKS_OBJ)
	$(call say,LINK,$@)
	$(Q)$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ -lcunit

$(AGENT_OBJ) $(EXCHANGE_HOOKS_OBJ): ALL_CFLAGS += -fPIC
$(BUILD)/agent/page_hash_avx2.o $(BUILD)/preload/agent/page_hash_avx2.o: ALL_CFLAGS += -mavx2

$(BUILD)/preload/%.o: %.c
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) -include agent/preload_real.h $(ALL_CFLAGS) -fPIC -c -o $@ $<

$(BUILD)/hooks/%.o: %.c
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) -DEXCHANGE_HOOKS $(ALL_CFLAGS) -c -o $@ $<

$(BUILD)/%.o: %.c
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(ALL_CFLAGS) -c -o $@ $<

.SECONDARY:
-include $(shell test -d $(BUILD) && find $(BUILD) -name '*.d')
