// The running softmax of attn.comp: HG heads, TILE cells at a time, PER blocks of sums.
shared float score[HG * TILE];
shared float prob[HG * TILE];

WBlock acc[HG * PER];
float top[HG], total[HG]; // total: of this invocation's slice

// Probabilities relative to the new maximum; what was summed before shrinks to it.
void weigh_cells(uint n)
{
    float m[HG];
    [[unroll]] for (uint h = 0; h < HG; h++)
        m[h] = top[h];
    for (uint i = 0; i < n; i++)
        [[unroll]] for (uint h = 0; h < HG; h++)
            m[h] = max(m[h], score[h * TILE + i]);
    for (uint i = gl_LocalInvocationID.x; i < n; i += WG)
        [[unroll]] for (uint h = 0; h < HG; h++)
            prob[h * TILE + i] = exp(score[h * TILE + i] - m[h]);
    [[unroll]] for (uint h = 0; h < HG; h++) {
        float shrink = exp(top[h] - m[h]);
        top[h] = m[h];
        total[h] *= shrink;
        [[unroll]] for (uint i = 0; i < PER * W_VECS; i++)
            acc[h * PER + i / W_VECS].v[i % W_VECS] *= shrink;
    }
}
