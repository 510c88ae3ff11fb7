# The test programs, their runner and the fuzz targets. A test exits 0, 77 (skip) or otherwise.
#   make test                  everything; one closing line
#   make test-fast             the sanitizers' list, without them or with SAN=address,undefined, SAN=thread
#   make check-long            the long tables beside it
#   make fuzz-short, make fuzz FUZZ_SECONDS=600          each fuzz target for so long
$(TESTS): $(BUILD)/tests/%: $(BUILD)/tests/%.o $(SUPPORT) $(BUILD)/libcatflap.a
	@echo "  LINK  $@"
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) $(TEST_LDFLAGS) -o $@ $^ $(LDLIBS)
# These inject faults into the device's function table (support/vulkan_faults.h).
$(BUILD)/tests/test_vulkan $(BUILD)/tests/test_vulkan_ops: TEST_LDFLAGS := -Wl,--wrap=volkLoadDeviceTable
$(BUILD)/example: $(BUILD)/tests/example.o $(BUILD)/libcatflap.a
	@echo "  LINK  $@"
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LDLIBS)
# test_barriers leaves out waits between streams.
$(BUILD)/tests/test_barriers: TEST_LDFLAGS := -Wl,--wrap=cf_gpu_submit,--wrap=cf_gpu_wait
# test_turns counts them.
$(BUILD)/tests/test_turns: TEST_LDFLAGS := -Wl,--wrap=cf_gpu_submit,--wrap=cf_gpu_wait
# test_window watches what is recorded, submitted and asked for, and when.
$(BUILD)/tests/test_window: TEST_LDFLAGS := -Wl,--wrap=cf_gpu_submit,--wrap=cf_fetch_submit,--wrap=cf_gpu_attn_latent,--wrap=cf_gpu_glu
# test_dense_hold watches copies from RAM, and holds them back.
$(BUILD)/tests/test_dense_hold: TEST_LDFLAGS := -Wl,--wrap=cf_copier_push
# test_budget keeps books over every allocation.
$(BUILD)/tests/test_budget: TEST_LDFLAGS := -Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc,--wrap=free,--wrap=strdup,--wrap=mmap,--wrap=munmap,--wrap=mprotect,--wrap=volkLoadDeviceTable
# These run the program beside them.
$(foreach t,test_bench test_cli test_cli_info test_cli_mistakes test_cli_mkmodel test_faults test_pack test_pack_sources test_slices test_threads,$(BUILD)/tests/$t): | $(BUILD)/catflap
$(BUILD)/tests/test_cli: | $(BUILD)/example
# test_badmodel refuses O_DIRECT.
$(BUILD)/tests/test_badmodel: TEST_LDFLAGS := -Wl,--wrap=open

CLANG  := $(shell command -v clang 2>/dev/null)
# A make of its own, parallel unless the caller has decided.
JOBS   ?= $(shell nproc)
SUBMAKE = $(MAKE) --no-print-directory $(if $(V),,-s) $(if $(findstring jobserver,$(MAKEFLAGS)),,-j$(JOBS))

# ---- sanitizers: the reference device only (driver libraries leak, and are not instrumented) ----
ASAN_TESTS := $(filter $(notdir $(TEST_SRC:.c=)), \
              test_activations test_badmodel test_barriers test_block_models test_cache \
              test_cache_steps test_chat test_dense test_dense_hold test_encoder test_faults \
              test_fetch test_gguf test_gguf_families test_gguf_models test_gguf_scales \
              test_hazard test_history test_identity test_index test_io test_jinja test_kv_q8 \
              test_layout test_machine test_models test_pack test_pack_sources test_policy \
              test_predict test_prefill test_quants test_regrouped test_residency test_routers \
              test_rows test_safetensors test_safetensors_write test_sampler test_slices \
              test_state test_stored test_threads test_timeline test_tokenizer \
              test_tokenizer_bounds test_tokenizer_forms test_tokenizer_parts test_turns \
              test_utf8 test_variants test_window)
TSAN_TESTS := $(filter $(notdir $(TEST_SRC:.c=)), \
              test_badmodel test_barriers test_cache test_cache_steps test_dense test_dense_hold \
              test_faults test_fetch test_identity test_io test_pack test_predict test_rows \
              test_slices test_threads test_timeline test_turns test_window)
SAN_TESTS  := $(if $(findstring thread,$(SAN)),$(TSAN_TESTS),$(ASAN_TESTS))
# Tests that run on every device there is, unless told on which.
BY_DEVICE  := test_activations test_dense test_dense_hold test_encoder test_gguf_families \
              test_gguf_models test_gguf_scales test_identity test_kv_q8 test_long test_models \
              test_regrouped test_slices test_stored test_threads test_turns test_window
# Of these the sanitizers run less.
SHORTER    := test_dense test_dense_hold test_identity
# Arguments of run.sh: the tests $2 of the build folder $1.
runs = $(foreach t,$2,'$1/tests/$t$(if $(filter $(BY_DEVICE),$t), ref)$(if $(filter $(SHORTER),$t), short)$(if $(filter test_faults,$t), 40)')

# ---- fuzz targets: the whole library, instrumented, in a folder of its own ----
FUZZ      := $(FUZZ_SRC:%.c=$(BUILD)/%)
FUZZ_RUNS := $(FUZZ_SRC:%.c=build-fuzz/%)
$(BUILD)/tests/fuzz/fuzz_pack: $(BUILD)/tests/support/reseal.o
# What the commands read themselves: with all of tools/ but main.
$(BUILD)/tests/fuzz/fuzz_ids $(BUILD)/tests/fuzz/fuzz_stats: $(filter-out %/catflap.o,$(TOOL_SRC:%.c=$(BUILD)/%.o))
$(FUZZ): $(BUILD)/tests/fuzz/%: $(BUILD)/tests/fuzz/%.o $(BUILD)/libcatflap.a
	@echo "  LINK  $@"
	$(Q)$(CC) $(CFLAGS) -fsanitize=fuzzer -o $@ $(filter %.o,$^) $(filter %.a,$^) $(LDLIBS)
fuzz-build:
	+$(Q)$(if $(CLANG),$(SUBMAKE) BUILD=build-fuzz CC=clang OPT='-O1 -g' \
	  SAN=fuzzer-no-link$(comma)address$(comma)undefined $(FUZZ_RUNS),echo 'clang is missing: no fuzz targets')
fuzz-short: fuzz-build
	$(Q)FUZZ_SECONDS=$(or $(FUZZ_SECONDS),5) tests/run.sh $(FUZZ_RUNS)
fuzz: fuzz-build
	$(Q)FUZZ_SECONDS=$(or $(FUZZ_SECONDS),600) tests/run.sh $(FUZZ_RUNS)

# ---- no warning from either compiler ----
ALL_SRC := $(LIB_SRC) $(TOOL_SRC) $(TEST_SRC) $(FUZZ_SRC) $(wildcard tests/support/*.c tests/bench/*.c tests/*.c)
SYNTAX   = printf '%s\n' $(sort $(ALL_SRC)) | xargs -P $(JOBS) -n 8 $1 $(CPPFLAGS) -std=c17 $(WARN) -Werror -fsyntax-only
syntax-cc: $(BUILD)/libcatflap.a
	$(Q)$(call SYNTAX,$(CC))
syntax-clang: $(BUILD)/libcatflap.a
	$(Q)$(call SYNTAX,clang)

test-programs: all $(TESTS) $(BUILD)/example
test-fast-programs: $(SAN_TESTS:%=$(BUILD)/tests/%)
test-fast:
	+$(Q)$(SUBMAKE) test-fast-programs
	$(Q)tests/run.sh $(call runs,$(BUILD),$(SAN_TESTS))
ifeq ($(SAN),)
test:
	+$(Q)$(SUBMAKE) test-programs
	+$(Q)$(SUBMAKE) SAN=address,undefined OPT='-O1 -g' test-fast-programs
	+$(Q)$(SUBMAKE) SAN=thread OPT='-O1 -g' test-fast-programs
	+$(Q)$(SUBMAKE) fuzz-build
	$(Q)FUZZ_SECONDS=$(or $(FUZZ_SECONDS),5) tests/run.sh layers=tools/layers.sh \
	  'warnings of $(CC)=$(MAKE) -s syntax-cc' \
	  $(if $(CLANG),'warnings of clang=$(MAKE) -s syntax-clang','clang is missing=awk BEGIN{exit(77)}') \
	  $(BUILD) \
	  $(call runs,build-address-undefined,$(ASAN_TESTS)) $(call runs,build-thread,$(TSAN_TESTS)) \
	  $(FUZZ_RUNS)
else
test:
	+$(Q)$(SUBMAKE) test-programs
	$(Q)tests/run.sh $(BUILD)
endif
# What takes minutes: every recorded trace at every size, more runs on drives that misbehave.
check-long: test-programs
	$(Q)tests/run.sh '$(BUILD)/tests/test_policies long' '$(BUILD)/tests/test_faults 2000'
.PHONY: check-long test test-fast test-programs test-fast-programs fuzz fuzz-short fuzz-build syntax-cc syntax-clang

# ---- benches: programs of tests/bench, not part of the tests ----
BENCHES := $(patsubst tests/bench/%.c,$(BUILD)/bench/%,$(wildcard tests/bench/bench_*.c))
$(BENCHES): $(BUILD)/bench/%: $(BUILD)/tests/bench/%.o $(SUPPORT) $(BUILD)/libcatflap.a
	@echo "  LINK  $@"; mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) $(TEST_LDFLAGS) -o $@ $^ $(LDLIBS)
$(BUILD)/bench/bench_stall: TEST_LDFLAGS := -Wl,--wrap=cf_gpu_submit
# Streams a generated checkpoint of more than 6 GiB: needs about 8 GiB in $TMPDIR or /tmp.
bench: $(BENCHES)
bench-stream: all $(BENCHES)
	$(Q)tests/bench/stream.sh $(BUILD)
# Cold records beside fio: 2 GiB in $TMPDIR or /tmp. The same model in a memory cgroup of a quarter of it.
bench-fetch: $(BUILD)/bench/bench_fetch
	$(Q)tests/bench/fetch.sh $(BUILD)
bench-capped: all $(BUILD)/bench/bench_stream
	$(Q)tests/bench/capped.sh $(BUILD)
# What --ram buys where dense weights are streamed: 0.3 GB in $TMPDIR or /tmp.
bench-dense: all $(BUILD)/bench/bench_dense
	$(Q)tests/bench/dense.sh $(BUILD)
# PoCL beside lavapipe: needs about 8 GiB in $TMPDIR or /tmp.
bench-software: all
	$(Q)tests/bench/software.sh $(BUILD)
# 32,768 positions: some minutes.
bench-long: all
	$(Q)tests/bench/long.sh $(BUILD)
# Needs a GPU: its tests, ceilings, a resident and a streamed run, timelines; the report in gpu-report.
bench-gpu: all $(BENCHES) test-programs
	$(Q)tests/bench/gpu.sh $(BUILD)
.PHONY: bench-gpu bench-long bench-software bench bench-stream bench-fetch bench-capped bench-dense
