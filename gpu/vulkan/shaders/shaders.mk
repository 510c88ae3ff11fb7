# SPIR-V is embedded at build: glslc compiles every shader for every format that it reads into a C
# initialiser, and two generated headers list them for the C side: VK_SHADER_OPS names the shaders
# (enum vk_shader), VK_SHADER_TABLE the compiled (shader, format) pairs. The formats are those of the
# enum in runtime/base/format.h up to the last computable one; format_ids.glsl tells the shaders
# their numbers and the sizes of their blocks.
# The shaders that may take activations in 8 bits are there once more for the formats that codes.glsl has,
# as linear_i8 and so on: the same source with INTEGERS.
VK_FORMAT_H       := runtime/base/format.h
VK_WEIGHT_FORMATS := $(shell awk '/^ *CF_F32,/ { on = 1 } \
  on { n = split($$0, w, /[ ,]+/); for (i = 1; i <= n && on; i++) if (w[i] ~ /^CF_/) { \
         print tolower(substr(w[i], 4)); on = w[i] != "CF_F8_E4M3" } }' $(VK_FORMAT_H))
VK_KV_FORMATS     := f32 f16 q8_0
VK_CODE_SHADERS   := linear_i8 expert_glu_i8 expert_down_i8
VK_CODE_FORMATS   := $(sort $(patsubst FMT_%,%,$(shell grep -o "FMT_[a-z0-9_]*" gpu/vulkan/shaders/codes.glsl)))
VK_WEIGHT_SHADERS := linear head_linear head_linear_t expert_glu expert_down get_rows
VK_KV_SHADERS     := kv_store attn_latent attn index_score attn_bias
VK_PLAIN_SHADERS  := norm rope attn_merge glu map add route combine conv state_gates attn_state gate index_select

VK_GLSL  := gpu/vulkan/shaders
VK_GEN   := $(GEN)/$(VK_GLSL)
VK_PAIRS := $(foreach s,$(VK_WEIGHT_SHADERS),$(VK_WEIGHT_FORMATS:%=$(s).%)) \
            $(foreach s,$(VK_CODE_SHADERS),$(VK_CODE_FORMATS:%=$(s).%)) \
            $(foreach s,$(VK_KV_SHADERS),$(VK_KV_FORMATS:%=$(s).%)) \
            $(VK_PLAIN_SHADERS:%=%.f32)
VK_SPIRV := $(VK_PAIRS:%=$(VK_GEN)/%.spv.inc)
VK_NAMES := $(VK_WEIGHT_SHADERS) $(VK_CODE_SHADERS) $(VK_KV_SHADERS) $(VK_PLAIN_SHADERS)

define VK_COMPILE
$(VK_GEN)/$(1).$(2).spv.inc: $(VK_GLSL)/$(1:%_i8=%).comp $(VK_GLSL)/shaders.mk | $(VK_GEN)/format_ids.glsl
	@echo "  GLSL  $$@"; mkdir -p $$(@D)
	$$(Q)glslc --target-env=vulkan1.2 -O -mfmt=c -I$(VK_GEN) -DWEIGHT_FMT=FMT_$(2) $(if $(filter %_i8,$(1)),-DINTEGERS) -MD -MF $$@.d -o $$@ $$<
endef
$(foreach p,$(VK_PAIRS),$(eval $(call VK_COMPILE,$(basename $(p)),$(patsubst .%,%,$(suffix $(p))))))

# The number of each format (cf_format), and of those in larger blocks than a pair their sizes, read
# off the table of runtime/base/format.c. Kept as it is where nothing changes.
$(VK_GEN)/format_ids.glsl: $(VK_FORMAT_H) runtime/base/format.c $(VK_GLSL)/shaders.mk
	@mkdir -p $(@D)
	$(Q){ echo '// Generated from runtime/base/format.c.'; n=0; for f in $(VK_WEIGHT_FORMATS); do \
	  echo "#define FMT_$$f $$n"; n=$$((n + 1)); done; \
	  for f in $(VK_WEIGHT_FORMATS); do \
	    sed -n "s/.*\[CF_$$(echo $$f | tr a-z A-Z)\] *= *{[^,]*, *[-0-9]*, *\([0-9]*\), *\([0-9]*\)}.*/\1 \2/p" runtime/base/format.c | \
	    { read v b; [ "$$v" -gt 2 ] && printf '#if WEIGHT_FMT == FMT_%s\n#define W_VALUES %s\n#define W_BYTES %s\n#endif\n' "$$f" "$$v" "$$b"; true; }; \
	  done; } >$@.new; cmp -s $@.new $@ && rm $@.new && touch $@ || mv $@.new $@
$(VK_GEN)/vk_shader_ops.inc: $(VK_GLSL)/shaders.mk
	@mkdir -p $(@D)
	$(Q)printf '#define VK_SHADER_OPS(X)$(foreach s,$(VK_NAMES), X($(s)))\n' >$@
$(VK_GEN)/vk_shader_table.inc: $(VK_GLSL)/shaders.mk $(VK_GLSL)/codes.glsl $(VK_FORMAT_H)
	@mkdir -p $(@D)
	$(Q){ for p in $(VK_PAIRS); do s=$${p%.*} f=$${p#*.}; F=$$(echo $$f | tr a-z A-Z); \
	  printf 'static const uint32_t spv_%s_%s[] =\n#include "$(VK_GLSL)/%s.spv.inc"\n;\n' $$s $$f $$p; \
	  rows="$$rows X($$s, $$f, CF_$$F)"; done; \
	  printf '#define VK_SHADER_TABLE(X)%s\n' "$$rows"; } >$@
$(patsubst %.c,$(BUILD)/%.o,$(wildcard gpu/vulkan/*.c tests/test_vulkan*.c tests/test_ops.c tests/bench/bench_ops.c)): | $(VK_GEN)/vk_shader_ops.inc
$(BUILD)/gpu/vulkan/vk_pipeline.o: $(VK_SPIRV) $(VK_GEN)/vk_shader_table.inc
# A source that is gone makes what was built from it out of date; it is no error.
gpu/vulkan/shaders/%.comp gpu/vulkan/shaders/%.glsl: ;
