#!/usr/bin/env bash
# The direction of includes, no model's name below models/, no wait for idle devices: prints each breach, fails if any.
cd "$(dirname "$0")/.." || exit 1
breach=0

# allow FOLDER REGEX: files of FOLDER (not its subfolders' own rules) include ours only by REGEX.
allow()
{
    local found
    found=$(grep -nE '^#include "' "$@" /dev/null 2>/dev/null) || return 0
    echo "$found"
}
check()
{
    local rule=$1 pattern=$2
    shift 2
    local found
    found=$(allow "$@" | grep -vE "#include \"($pattern)")
    if [ -n "$found" ]; then
        echo "$rule:" && echo "$found" | sed 's/^/  /'
        breach=1
    fi
}
list() { find "$@" -name '*.[ch]' 2>/dev/null; }

check "runtime/base includes nothing of ours but itself" 'runtime/base/' $(list runtime/base)
check "storage includes runtime/base and storage" 'runtime/base/|storage/' $(list storage)
check "gpu includes runtime/base and gpu" 'runtime/base/|gpu/' $(list gpu)
check "runtime includes storage, gpu and runtime" 'runtime/|storage/|gpu/[a-z_]*\.h' $(list runtime -path runtime/base -prune -o)
check "models includes runtime, storage and gpu/ops.h" 'runtime/|storage/|gpu/(ops|gpu)\.h|models/' $(list models)

names='longcat|deepseek|mixtral|qwen|kimi|olmoe|dbrx|grok|minimax|minicpm|llama|gpt.?oss|granite|ernie|phi.?moe|glm|switch.?transformers|switch.?base|[^a-z]dsa[^a-z]|q_a_proj|kv_a_proj|kv_b_proj|in_proj_|o_proj|weights_proj|block_sparse_moe|shared_expert|embed_tokens|lm_head|post_attention_layernorm|gate_proj|up_proj|down_proj'
found=$(grep -rniEs "$names" runtime gpu storage --include='*.c' --include='*.h' --include='*.comp' --include='*.glsl' --include='*.cl')
if [ -n "$found" ]; then
    echo "a family, architecture or tensor name below models/:" && echo "$found" | sed 's/^/  /'
    breach=1
fi
# A whole device or queue is waited for where it is built or closed, never while tokens are computed.
found=$(grep -rnE 'WaitIdle|clFinish\(' runtime gpu storage --include='*.c' |
    grep -vE '^gpu/(vulkan/vk_(memory|context)|opencl/ocl_(stream|device|program))\.c:')
found+=$(grep -rn 'QueueWaitIdle' gpu --include='*.c')
if [ -n "$found" ]; then
    echo "a wait for a whole device:" && echo "$found" | sed 's/^/  /'
    breach=1
fi
exit $breach
