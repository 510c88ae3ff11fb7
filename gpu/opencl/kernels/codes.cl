// What block formats share: small codes to floats.

// What 4-bit codes stand for: the tables of format.h. E2M1 is doubled.
__constant char iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                  1,    13,   25,  38,  53,  69,  89,  113};
__constant char e2m1_values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

#if defined(__SSSE3__) && defined(__has_builtin)
#if __has_builtin(__builtin_ia32_pshufb128)
#define HAS_PSHUFB
typedef char bytes16 __attribute__((vector_size(16)));
#endif
#endif

INLINE float16 values_of(__constant const char *table, uchar16 code)
{
#ifdef HAS_PSHUFB
    return convert_float16(__builtin_astype(
        __builtin_ia32_pshufb128(__builtin_astype(vload16(0, table), bytes16),
                                 __builtin_astype(code, bytes16)),
        char16));
#else
    uchar c[16];
    char v[16];
    vstore16(code, 0, c);
    for (uint i = 0; i < 16; i++)
        v[i] = table[c[i]];
    return convert_float16(vload16(0, v));
#endif
}

INLINE float16 e2m1_doubled(uchar16 code)
{
    return values_of(e2m1_values, code);
}

INLINE float16 iq4_codes(uchar16 code)
{
    return values_of(iq4_values, code);
}

// Values of codes of up to 4 bits, in the low bits of `code` (others may be set). VALUE(c) gives
// those of floats: of each code, or of all that there are, which one instruction then looks up.
#if defined(__AVX512F__) && defined(__has_builtin)
#if __has_builtin(__builtin_ia32_permvarsf512)
#define HAS_LOOK_UP
typedef float floats16 __attribute__((vector_size(64)));
typedef int ints16 __attribute__((vector_size(64)));
#endif
#endif

#ifdef HAS_LOOK_UP
INLINE float16 look_up(float16 table, uint16 code)
{
    return __builtin_astype(__builtin_ia32_permvarsf512(__builtin_astype(table, floats16),
                                                        __builtin_astype(code, ints16)),
                            float16);
}
#define EVERY_CODE ((uint16)(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15))
#define OF_CODES(VALUE, code, mask) look_up(VALUE(convert_float16(EVERY_CODE & (mask))), code)
#else
#define OF_CODES(VALUE, code, mask) VALUE(convert_float16((code) & (mask)))
#endif

// Of 16 bytes of codes in a table: those of the low nibbles and of the high ones, times d.
INLINE void values_of_nibbles(__constant const char *table, bytes_in q, float d, float16 *v)
{
#ifdef HAS_LOOK_UP
    float16 all = convert_float16(vload16(0, table)) * d;
    uint16 code = convert_uint16(vload16(0, q));
    v[0] = look_up(all, code);
    v[1] = look_up(all, code >> 4u);
#else
    uchar16 code = vload16(0, q);
    v[0] = values_of(table, code & (uchar)15) * d;
    v[1] = values_of(table, code >> (uchar)4) * d;
#endif
}

// 32 values of nibbles: the low ones, then the high ones.
INLINE void nibbles(bytes_in q, uchar16 *c)
{
    uchar16 v = vload16(0, q);
    c[0] = v & (uchar)15;
    c[1] = v >> (uchar)4;
}

// Blocks behind each other: rows are whole ones, and no row ends inside.
INLINE ulong weight_bytes(ulong n)
{
    return n / W_VALUES * W_BYTES;
}

#if W_VALUES > 2
INLINE float weight_element(bytes_in row, ulong i)
{
    return 0.0f;
}
#endif
