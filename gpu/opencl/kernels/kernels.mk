# The kernels' sources are embedded at build, each file as one C string literal; ocl_program.c puts
# the programs together from them.
OCL_DIR  := gpu/opencl/kernels
OCL_GEN  := $(GEN)/$(OCL_DIR)
OCL_SRC  := $(wildcard $(OCL_DIR)/*.cl) $(OCL_DIR)/ocl_params.h
OCL_INC  := $(OCL_SRC:%=$(GEN)/%.inc)

$(OCL_GEN)/%.inc: $(OCL_DIR)/%
	@echo "  CL    $@"; mkdir -p $(@D)
	$(Q)sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e 's/.*/"&\\n"/' $< >$@
# The codebooks are those of the reference.
$(OCL_GEN)/grids.cl.inc: gpu/ref/ref_grids.inc
	@echo "  CL    $@"; mkdir -p $(@D)
	$(Q)sed -e 's/^static const uint16_t/static __constant ushort/' -e 's/.*/"&\\n"/' $< >$@
$(BUILD)/gpu/opencl/ocl_program.o: $(OCL_INC) $(OCL_GEN)/grids.cl.inc
