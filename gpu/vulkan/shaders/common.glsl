// What every shader shares: pointers by device address, the work-group size, flat indices.
//
// Sizes come by specialisation constant (id 0 is the work-group size, others per shader) and
// push constants. No result depends on the subgroup width: sums over a work-group are made in
// shared memory in a fixed order.
#ifndef COMMON_GLSL
#define COMMON_GLSL
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_shader_explicit_arithmetic_types_int64 : require
#extension GL_EXT_control_flow_attributes : require

layout(constant_id = 0) const uint WG = 64; // a power of two
layout(local_size_x_id = 0) in;

layout(buffer_reference, std430, buffer_reference_align = 4) buffer F32s { float v[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) buffer U32s { uint v[]; };
layout(buffer_reference, std430, buffer_reference_align = 16) readonly buffer F32x4s { vec4 v[]; };
layout(buffer_reference, std430, buffer_reference_align = 16) readonly buffer U32x4s { uvec4 v[]; };

// The host splits a long grid over x and y (grid_split in vk_ops.c).
uint group_index()
{
    return gl_WorkGroupID.x + gl_WorkGroupID.y * gl_NumWorkGroups.x;
}

uint flat_index()
{
    return group_index() * WG + gl_LocalInvocationID.x;
}

// By bits: a driver may assume that no NaN occurs and drop isnan().
bool is_nan(float v)
{
    return (floatBitsToUint(v) & 0x7fffffffu) > 0x7f800000u;
}
#endif
