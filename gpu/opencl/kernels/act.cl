// Activations of gated units, of a float and of a vec: act(g) * u; where there is no u, the caller
// gives 1. A NaN stays one.
#define ACT_OF(T, activate)                                                                        \
    INLINE T activate(uint act, T g, T u, float limit, float alpha)                                \
    {                                                                                              \
        if (act == OCL_ACT_GELU_TANH) /* sqrt(2 / pi) */                                           \
            return 0.5f * g * (1.0f + tanh(0.7978845608f * (g + 0.044715f * g * g * g))) * u;      \
        if (act == OCL_ACT_RELU)                                                                   \
            return (g < 0.0f ? (T)0.0f : g) * u;                                                   \
        if (act == OCL_ACT_SWIGLU_CLAMPED) {                                                       \
            g = g > limit ? (T)limit : g;                                                          \
            u = u > limit ? (T)limit : u;                                                          \
            u = u < -limit ? (T)-limit : u;                                                        \
            return g * (1.0f / (1.0f + exp(-alpha * g))) * (u + 1.0f);                             \
        }                                                                                          \
        return g / (1.0f + exp(-g)) * u;                                                           \
    }
ACT_OF(float, activate)
ACT_OF(vec, activate_vec)
