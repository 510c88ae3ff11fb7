#!/usr/bin/env bash
# Streams the bundled model with a budget in which about a quarter of its routed experts fit: the
# text appears as it is generated, the statistics close it.
#   tools/demo.sh build/catflap
set -eu
catflap=$(realpath "${1:?usage: tools/demo.sh BUILD/catflap}")
cd "$(dirname "$0")/.."
model=models/demo
prompt="Once upon a time there was a king who"

# What the device needs with every expert in a slot, less three quarters of the slots.
plan=$("$catflap" info "$model" --json)
number() { printf '%s' "$plan" | sed -n "s/.*\"$1\": *\([0-9]*\).*/\1/p" | head -n 1; }
vram=$(($(number vram_all_experts) - $(number records) * 3 / 4 * $(number slot_bytes)))

printf 'The bundled model with --vram %s: a quarter of its experts fit, the others are read as they are needed.\n' "$vram" >&2
printf 'The prompt: %s ...\n\n' "$prompt" >&2
exec "$catflap" run "$model" -p "$prompt" -n 200 --temp 0.8 --top-p 0.95 --seed 7 --vram "$vram" -v
