# SPIR-V is embedded at build: glslc compiles every shader for every format that it reads into a C
# initialiser, and two generated headers list them for the C side: VK_SHADER_OPS names the shaders
# (enum vk_shader), VK_SHADER_TABLE the compiled (shader, format) pairs. A new weight format is one
# word here, one section in weight.glsl and one id in gpu/ops.h.
VK_WEIGHT_FORMATS := f32 f16 bf16
VK_KV_FORMATS     := f32 f16
VK_WEIGHT_SHADERS := linear head_linear head_linear_t expert_glu expert_down get_rows
VK_KV_SHADERS     := kv_store attn_latent attn index_score attn_bias
VK_PLAIN_SHADERS  := norm rope attn_merge glu map add route combine conv state_gates attn_state gate index_select

VK_GLSL  := gpu/vulkan/shaders
VK_GEN   := $(BUILD)/$(VK_GLSL)
VK_PAIRS := $(foreach s,$(VK_WEIGHT_SHADERS),$(VK_WEIGHT_FORMATS:%=$(s).%)) \
            $(foreach s,$(VK_KV_SHADERS),$(VK_KV_FORMATS:%=$(s).%)) \
            $(VK_PLAIN_SHADERS:%=%.f32)
VK_SPIRV := $(VK_PAIRS:%=$(VK_GEN)/%.spv.inc)
VK_NAMES := $(VK_WEIGHT_SHADERS) $(VK_KV_SHADERS) $(VK_PLAIN_SHADERS)

define VK_COMPILE
$(VK_GEN)/$(1).$(2).spv.inc: $(VK_GLSL)/$(1).comp $(VK_GLSL)/shaders.mk
	@echo "  GLSL  $$@"; mkdir -p $$(@D)
	$$(Q)glslc --target-env=vulkan1.2 -O -mfmt=c -DWEIGHT_FMT=FMT_$(2) -MD -MF $$@.d -o $$@ $$<
endef
$(foreach p,$(VK_PAIRS),$(eval $(call VK_COMPILE,$(basename $(p)),$(patsubst .%,%,$(suffix $(p))))))

$(VK_GEN)/vk_shader_ops.inc: $(VK_GLSL)/shaders.mk
	@mkdir -p $(@D)
	$(Q)printf '#define VK_SHADER_OPS(X)$(foreach s,$(VK_NAMES), X($(s)))\n' >$@
$(VK_GEN)/vk_shader_table.inc: $(VK_GLSL)/shaders.mk
	@mkdir -p $(@D)
	$(Q){ $(foreach p,$(VK_PAIRS),printf 'static const uint32_t spv_$(subst .,_,$(p))[] =\n#include "$(VK_GLSL)/$(p).spv.inc"\n;\n';) \
	printf '#define VK_SHADER_TABLE(X)$(foreach p,$(VK_PAIRS), X($(subst .,$(comma),$(p))))\n'; } >$@
$(patsubst %.c,$(BUILD)/%.o,$(wildcard gpu/vulkan/*.c tests/test_vulkan.c)): | $(VK_GEN)/vk_shader_ops.inc
$(BUILD)/gpu/vulkan/vk_pipeline.o: $(VK_SPIRV) $(VK_GEN)/vk_shader_table.inc
# A source that is gone makes what was built from it out of date; it is no error.
gpu/vulkan/shaders/%.comp gpu/vulkan/shaders/%.glsl: ;
