// Activations of gated units, and the functions that they and soft caps are made of.
#ifndef ACT_GLSL
#define ACT_GLSL

const uint ACT_SILU = 0, ACT_GELU_TANH = 1, ACT_RELU = 2, ACT_SWIGLU_CLAMPED = 3; // cf_act

float sigmoid(float v)
{
    return 1.0 / (1.0 + exp(-v));
}

// Drivers may make tanh of exponentials that overflow, or that cancel near 0.
float tanh_safe(float v)
{
    float x = abs(v), x2 = v * v;
    if (x < 0.2)
        return v - v * x2 * (1.0 / 3.0 - x2 * (2.0 / 15.0 - x2 * (17.0 / 315.0)));
    float e = exp(-2.0 * x), t = (1.0 - e) / (1.0 + e);
    return v < 0.0 ? -t : t;
}

// act(g) * u; where there is no u, the caller gives 1.
float activate(uint act, float g, float u, float limit, float alpha)
{
    if (act == ACT_GELU_TANH) // sqrt(2 / pi)
        return 0.5 * g * (1.0 + tanh_safe(0.7978845608 * (g + 0.044715 * g * g * g))) * u;
    if (act == ACT_RELU) // a NaN stays one
        return (g < 0.0 ? 0.0 : g) * u;
    if (act == ACT_SWIGLU_CLAMPED) {
        g = g > limit ? limit : g;
        u = u > limit ? limit : u < -limit ? -limit : u;
        return g * sigmoid(alpha * g) * (u + 1.0);
    }
    return g / (1.0 + exp(-g)) * u;
}
#endif
