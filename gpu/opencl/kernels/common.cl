// What every kernel shares: how work is split, vectors, and two shapes of one source.
//
// WG, the work-group size, is given when the program is built: 1 on a CPU, where an item does a
// whole unit of work with explicit vectors and there is neither local memory nor a barrier; 64 on
// a GPU, where the items of a group share a unit and add their parts in a fixed order. A kernel
// has `units` of work; group g of G takes the g-th part of them, so any number of groups gives
// the same bits, and a grid stays small however large the work.
#pragma OPENCL FP_CONTRACT OFF

#if WG == 1
#define LANES 16
typedef float16 vec;
typedef uint16 uvec;
#define VEC_LOAD(p)     vload16(0, p)
#define VEC_STORE(v, p) vstore16(v, 0, p)
#define VEC_OF_BITS     as_float16
#define BITS_OF_VEC     as_uint16
#define LOAD_U16S(p)    convert_uint16(vload16(0, p))
#define SHARED
#define SYNC()
#define ITEM  0u
#else
#define LANES 8
typedef float8 vec;
typedef uint8 uvec;
#define VEC_LOAD(p)     vload8(0, p)
#define VEC_STORE(v, p) vstore8(v, 0, p)
#define VEC_OF_BITS     as_float8
#define BITS_OF_VEC     as_uint8
#define LOAD_U16S(p)    convert_uint8(vload8(0, p))
#define SHARED __local
#define SYNC() barrier(CLK_LOCAL_MEM_FENCE)
#define ITEM   ((uint)get_local_id(0))
#endif

#if WG > 1
#undef STRETCHES // see dot.cl
#endif

#define CHUNK OCL_CHUNK(WG)

// Inlined everywhere, so that a constant argument is one to the loops inside.
#define INLINE static inline __attribute__((always_inline))
#define KERNEL __kernel __attribute__((reqd_work_group_size(WG, 1, 1))) void
#define GROUP_UNITS(u, n)                                                                          \
    ulong u = (n)*get_group_id(0) / get_num_groups(0);                                             \
    u < (n) * (get_group_id(0) + 1) / get_num_groups(0);                                           \
    u++

typedef const __global uchar *bytes_in;
typedef __global uchar *bytes_out;
#define FLOATS(buf, off)     ((const __global float *)((buf) + (off)))
#define UINTS(buf, off)      ((const __global uint *)((buf) + (off)))
#define FLOATS_OUT(buf, off) ((__global float *)((buf) + (off)))
#define UINTS_OUT(buf, off)  ((__global uint *)((buf) + (off)))

// a * b + c, rounded once where the hardware does so: named, not left to the compiler, so that
// the bits of a result do not depend on the tile that it is computed in.
#if defined(FP_FAST_FMAF) || defined(__FMA__) || defined(__ARM_FEATURE_FMA) || WG > 1
#define MULTIPLY_ADD(a, b, c) fma(a, b, c)
#else
#define MULTIPLY_ADD(a, b, c) ((a) * (b) + (c))
#endif

#if WG == 1 && defined(__has_builtin)
#if __has_builtin(__builtin_prefetch)
#define PREFETCH(p) __builtin_prefetch(p)
#endif
#endif
#ifndef PREFETCH
#define PREFETCH(p)
#endif

// The first n of the floats at p, at most LANES, then zeros.
INLINE vec vec_load_n(const __global float *p, ulong n)
{
    float v[LANES];
    if (n >= LANES)
        return VEC_LOAD(p);
#pragma nounroll
    for (uint i = 0; i < LANES; i++)
        v[i] = i < n ? p[i] : 0.0f;
    return VEC_LOAD(v);
}

INLINE void vec_store_n(vec v, __global float *p, ulong n)
{
    float f[LANES];
    if (n >= LANES) {
        VEC_STORE(v, p);
        return;
    }
    VEC_STORE(v, f);
#pragma nounroll
    for (uint i = 0; i < n; i++)
        p[i] = f[i];
}

// Sixteen values into vectors of LANES.
INLINE void vecs_of_16(float16 v, vec *out)
{
#if LANES == 16
    out[0] = v;
#else
    out[0] = v.lo;
    out[1] = v.hi;
#endif
}

// An F16 at any even address, by bits: no driver converts a lone one faster.
INLINE float half_of_bits(uint h)
{
    uint rest = h & 0x7fffu;
    uint bits = as_uint(as_float(rest << 13) * 0x1p112f) | (rest >= 0x7c00u ? 0x7f800000u : 0u);
    return as_float(bits | (h & 0x8000u) << 16);
}

// The same of eight.
#if defined(__F16C__) && defined(__has_builtin)
#if __has_builtin(__builtin_ia32_vcvtph2ps256)
#define HAS_F16C
typedef short halves8 __attribute__((vector_size(16)));
#endif
#endif

INLINE float8 half_of_bits_8(ushort8 h)
{
#ifdef HAS_F16C
    return __builtin_astype(__builtin_ia32_vcvtph2ps256(__builtin_astype(h, halves8)), float8);
#else
    uint8 all = convert_uint8(h), rest = all & 0x7fffu;
    uint8 bits = as_uint8(as_float8(rest << 13) * 0x1p112f);
    bits |= select((uint8)0u, (uint8)0x7f800000u, rest >= 0x7c00u);
    return as_float8(bits | (all & 0x8000u) << 16);
#endif
}

INLINE uint u16_at(bytes_in p)
{
    return *(const __global ushort *)p;
}

INLINE float half_at(bytes_in p)
{
    return half_of_bits(u16_at(p));
}

// Two beside each other.
INLINE float2 halves_at(bytes_in p)
{
#ifdef HAS_F16C
    return half_of_bits_8((ushort8)(vload2(0, (const __global ushort *)p), 0, 0, 0, 0, 0, 0)).s01;
#else
    return (float2)(half_at(p), half_at(p + 2));
#endif
}

// Activations in 8 bits (ops.h): d * q of 32 values, q rounded halves away from zero.
INLINE float16 q8_codes(float16 x, float inverse)
{
    float16 v = fabs(x * inverse), whole = convert_float16(convert_int16(v));
    float16 q = select(whole, whole + 1.0f, v - whole >= 0.5f);
    return copysign(q, x);
}

INLINE int max_of_16(int16 v)
{
    int8 a = max(v.lo, v.hi);
    int4 b = max(a.lo, a.hi);
    int2 c = max(b.lo, b.hi);
    return max(c.lo, c.hi);
}

// The bits of |x| have the order of |x|, infinities and NaN last.
INLINE void q8_round(float16 *a, float16 *b)
{
    int most = max_of_16(max(as_int16(*a) & 0x7fffffff, as_int16(*b) & 0x7fffffff));
    bool some = most >= 27 << 23; // 2^-100
    float d = most >= 0x7f800000 ? NAN : some ? as_float(most) / 127.0f : 0.0f;
    float inverse = some ? 1.0f / d : 0.0f;
    *a = d * q8_codes(*a, inverse);
    *b = d * q8_codes(*b, inverse);
}

// The first n of the floats at p, then zeros.
INLINE float16 load_16(const __global float *p, uint n)
{
    float v[16];
    if (n >= 16)
        return vload16(0, p);
#pragma nounroll
    for (uint i = 0; i < 16; i++)
        v[i] = i < n ? p[i] : 0.0f;
    return vload16(0, v);
}

// The lanes added as a tree.
INLINE float vec_sum(vec v)
{
#if LANES == 16
    float8 a = v.lo + v.hi;
#else
    float8 a = v;
#endif
    float4 b = a.lo + a.hi;
    float2 c = b.lo + b.hi;
    return c.lo + c.hi;
}

#if LANES == 16
// The same of four, side by side.
INLINE float4 vec_sum_4(const vec *v)
{
    float8 a[4];
#pragma unroll
    for (uint i = 0; i < 4; i++)
        a[i] = v[i].lo + v[i].hi;
    float8 b = (float8)(a[0].lo, a[1].lo) + (float8)(a[0].hi, a[1].hi);
    float8 c = (float8)(a[2].lo, a[3].lo) + (float8)(a[2].hi, a[3].hi);
    float8 d = (float8)(b.s01, b.s45, c.s01, c.s45) + (float8)(b.s23, b.s67, c.s23, c.s67);
    return d.even + d.odd;
}
#endif

// By bits: a driver may assume that no NaN occurs and drop isnan().
INLINE bool is_nan(float v)
{
    return (as_uint(v) & 0x7fffffffu) > 0x7f800000u;
}
