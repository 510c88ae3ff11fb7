# make demo       install what is missing, build, stream the bundled model
# make check      the same set-up, then every test that can run here
# make            the programs: build/catflap and build/libcatflap.a
# make SAN=address,undefined test-fast      the short suite under sanitizers
# make V=1        show the commands
MAKEFLAGS += -r
comma   := ,
BUILD   ?= build$(if $(SAN),-$(subst $(comma),-,$(SAN)))
# What is generated is the same in every build: shaders in SPIR-V, kernels as text.
GEN     ?= build/generated
CC      ?= cc
OPT     ?= -O2 -g
WARN    := -Wall -Wextra -Wshadow -Wconversion -Wvla -Wpointer-arith -Wstrict-prototypes -Wmissing-prototypes
CPPFLAGS += -I. -I$(GEN) -D_GNU_SOURCE
override CFLAGS += -std=c17 $(OPT) -ffp-contract=off $(WARN) $(if $(SAN),-fsanitize=$(SAN) -fno-omit-frame-pointer)
override LDFLAGS += $(if $(findstring address,$(SAN)),-rdynamic)
LDLIBS  := -luring -ljansson -lpcre2-8 -lzstd -ldl -lm -pthread
Q := $(if $(V),,@)

LIB_SRC  := $(wildcard runtime/*.c runtime/base/*.c gpu/*.c gpu/ref/*.c gpu/vulkan/*.c gpu/opencl/*.c storage/*.c models/*.c)
TOOL_SRC := $(wildcard tools/*.c)
TEST_SRC := $(wildcard tests/test_*.c)
FUZZ_SRC := $(wildcard tests/fuzz/fuzz_*.c)
LIB_OBJ  := $(LIB_SRC:%.c=$(BUILD)/%.o)
TESTS    := $(TEST_SRC:%.c=$(BUILD)/%)
SUPPORT  := $(patsubst %.c,$(BUILD)/%.o,$(wildcard tests/support/*.c))

all: $(BUILD)/catflap
include $(wildcard gpu/*/shaders/shaders.mk gpu/*/kernels/kernels.mk)
include tests/tests.mk

$(BUILD)/libcatflap.a: $(LIB_OBJ)
	@echo "  AR    $@"
	$(Q)rm -f $@; $(AR) rcs $@ $^
$(BUILD)/catflap: $(TOOL_SRC:%.c=$(BUILD)/%.o) $(BUILD)/libcatflap.a
	@echo "  LINK  $@"
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LDLIBS)
$(BUILD)/%.o: %.c
	@echo "  CC    $@"; mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<
# The reference kernels, the quantisers and one policy are loops over floats: let the compiler
# vectorise them.
$(BUILD)/gpu/ref/%.o $(BUILD)/runtime/quantise%.o: OPT := -O3 -g
# No value depends on floating point traps; gcc needs to know that to vectorise a comparison.
$(BUILD)/runtime/policy_echo.o: OPT := -O3 -g -fno-trapping-math

demo: deps
	$(Q)$(MAKE) --no-print-directory all
	$(Q)tools/demo.sh $(BUILD)/catflap
check: deps
	$(Q)$(MAKE) --no-print-directory test
deps:
	$(Q)tools/deps.sh
layers:
	$(Q)tools/layers.sh
clean:
	rm -rf build build-*
.PHONY: all demo check deps layers clean
.SECONDARY:
-include $(shell find $(sort $(BUILD) $(GEN)) -name '*.d' 2>/dev/null)
