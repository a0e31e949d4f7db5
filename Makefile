# memvirtd. `make help` lists the targets.
#
# CC=clang works as well; V=1 shows commands; WERROR=0 keeps warnings from stopping the build.

PREFIX ?= /usr/local
DESTDIR ?=
BUILD ?= build
CC ?= gcc
V ?= 0
WERROR ?= 1
SAN ?=

PKGS := libsystemd jansson liburcu liburcu-cds libxxhash inih numa
DEPS_BUILD := gcc clang libclang-rt-14-dev make pkg-config libsystemd-dev libjansson-dev liburcu-dev \
	libxxhash-dev libinih-dev libnuma-dev libcunit1-dev
DEPS_TEST := qemu-system-x86 busybox-static cpio zstd xz-utils e2fsprogs socat

WARN := -Wall -Wextra -Wconversion -Wshadow $(if $(filter 1,$(WERROR)),-Werror)
VERSION := 0.1
CPPFLAGS += -D_GNU_SOURCE -I. -DMEMVIRT_VERSION='"$(VERSION)"'
CFLAGS ?= -O2 -g
# -std, warnings and dependencies are the project's, whatever CFLAGS the user gives.
ALL_CFLAGS = -std=gnu11 $(WARN) $(CFLAGS) $(if $(SAN),-fsanitize=$(SAN) -fno-omit-frame-pointer) \
	-MMD -MP $(PKG_CFLAGS) -pthread
PKG_CFLAGS = $(shell pkg-config --cflags $(PKGS))
PKG_LIBS = $(shell pkg-config --libs $(PKGS))

Q := $(if $(filter 1,$(V)),,@)
say = $(if $(filter 1,$(V)),@:,@printf '  %-7s %s\n' $(1) $(2))

LIB_DIRS := core vmm ept ksmd
LIB_SRC := $(sort $(wildcard $(addsuffix /*.c,$(LIB_DIRS))))
LIB_OBJ := $(LIB_SRC:%.c=$(BUILD)/%.o)
DAEMON_OBJ := $(patsubst %.c,$(BUILD)/%.o,$(sort $(wildcard daemon/*.c)))
CLI_OBJ := $(patsubst %.c,$(BUILD)/%.o,$(sort $(wildcard cli/*.c)))
UNIT_SRC := $(sort $(wildcard tests/unit/test_*.c))
UNIT_BIN := $(UNIT_SRC:tests/unit/%.c=$(BUILD)/tests/%)
FUZZ_SRC := $(sort $(wildcard tests/fuzz/fuzz_*.c))
FUZZ_BIN := $(FUZZ_SRC:tests/fuzz/%.c=$(BUILD)/fuzz/%)
BENCH_LIB_OBJ := $(patsubst %.c,$(BUILD)/%.o,$(sort $(wildcard bench/lib/*.c)))
BENCH_BIN := $(patsubst bench/%.c,$(BUILD)/bench/%,$(sort $(wildcard bench/*.c)))

PROGRAMS := $(BUILD)/memvirtd $(BUILD)/memvirtctl

.PHONY: all
all: $(PROGRAMS) benches

.PHONY: benches
benches: $(BENCH_BIN)

$(BUILD)/libmemvirt.a: $(LIB_OBJ)
	$(call say,AR,$@)
	$(Q)rm -f $@ && ar rcs $@ $^

$(BUILD)/memvirtd: $(DAEMON_OBJ) $(BUILD)/libmemvirt.a
	$(call say,LINK,$@)
	$(Q)$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ $(PKG_LIBS) -lm

$(BUILD)/memvirtctl: $(CLI_OBJ) $(BUILD)/libmemvirt.a
	$(call say,LINK,$@)
	$(Q)$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ $(PKG_LIBS)

$(BUILD)/bench/%: $(BUILD)/bench/%.o $(BENCH_LIB_OBJ) $(BUILD)/libmemvirt.a
	$(call say,LINK,$@)
	$(Q)$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ $(PKG_LIBS) -lm

$(BUILD)/tests/%: $(BUILD)/tests/unit/%.o $(BUILD)/libmemvirt.a
	$(call say,LINK,$@)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ $(PKG_LIBS) -lcunit

$(BUILD)/%.o: %.c
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(ALL_CFLAGS) -c -o $@ $<

.SECONDARY:
-include $(shell test -d $(BUILD) && find $(BUILD) -name '*.d')
