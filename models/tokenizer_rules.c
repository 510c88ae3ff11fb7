/* How the families split texts before merging, by the names that GGUF files (tokenizer.ggml.pre),
 * rank files and tokenizer classes go by. The patterns are those of the published tokenizers; where
 * a published one normalises, so does the rule: a GGUF file does not say. A name stands here only
 * with a pattern that has been looked up; others are refused, with the list. */
#include "models/tokenizer_rules.h"

#define CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define WORD         "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
#define TAIL         "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define UPPER        "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER        "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define NO_HAN_UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]"
#define NO_HAN_LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]"
/* By case: a word may begin with capitals or go on in them. */
#define CASED(upper, lower, end)                                                                   \
    "[^\\r\\n\\p{L}\\p{N}]?" upper "*" lower "+" end "|[^\\r\\n\\p{L}\\p{N}]?" upper "+" lower     \
    "*" end "|"
#define CASED_TAIL "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define HAN        "[\\x{4E00}-\\x{9FA5}\\x{0800}-\\x{4E00}\\x{AC00}-\\x{D7FF}]+"
/* Words with a mark of ASCII before them, else words, marks and spaces. */
#define MARKED                                                                                     \
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?"           \
    "[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
/* The cased letters of Latin, Greek, Cyrillic and their like. */
#define CASED_LETTERS                                                                              \
    "A-Za-z\\x{B5}\\x{C0}-\\x{D6}\\x{D8}-\\x{F6}\\x{F8}-\\x{1BA}\\x{1BC}-\\x{1BF}\\x{1C4}-"        \
    "\\x{293}\\x{295}-\\x{2AF}\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37B}-\\x{37D}\\x{37F}\\x{386}"  \
    "\\x{388}-\\x{38A}\\x{38C}\\x{38E}-\\x{3A1}\\x{3A3}-\\x{3F5}\\x{3F7}-\\x{481}\\x{48A}-"        \
    "\\x{52F}\\x{531}-\\x{556}\\x{10A0}-\\x{10C5}\\x{13A0}-\\x{13F5}\\x{13F8}-\\x{13FD}"           \
    "\\x{1C90}-\\x{1CBA}\\x{1CBD}-\\x{1CBF}\\x{1D00}-\\x{1D2B}\\x{1D6B}-\\x{1D77}\\x{1D79}-"       \
    "\\x{1D9A}\\x{1E00}-\\x{1F15}\\x{1F18}-\\x{1F1D}\\x{1F20}-\\x{1F45}\\x{1F48}-\\x{1F4D}"        \
    "\\x{1F50}-\\x{1F57}\\x{1F59}\\x{1F5B}\\x{1F5D}\\x{1F5F}-\\x{1F7D}\\x{1F80}-\\x{1FB4}"         \
    "\\x{1FB6}-\\x{1FBC}\\x{1FBE}\\x{1FC2}-\\x{1FC4}\\x{1FC6}-\\x{1FCC}\\x{1FD0}-\\x{1FD3}"        \
    "\\x{1FD6}-\\x{1FDB}\\x{1FE0}-\\x{1FEC}\\x{1FF2}-\\x{1FF4}\\x{1FF6}-\\x{1FFC}\\x{2102}"        \
    "\\x{2107}\\x{210A}-\\x{2113}\\x{2115}\\x{2119}-\\x{211D}\\x{2124}\\x{2126}\\x{2128}"          \
    "\\x{212A}-\\x{212D}\\x{212F}-\\x{2134}\\x{2139}\\x{213C}-\\x{213F}\\x{2145}-\\x{2149}"        \
    "\\x{214E}\\x{2183}\\x{2184}\\x{2C00}-\\x{2C7B}\\x{2C7E}-\\x{2CE4}\\x{2CEB}-\\x{2CEE}"         \
    "\\x{2CF2}\\x{2CF3}\\x{A640}-\\x{A66D}\\x{A680}-\\x{A69B}\\x{A722}-\\x{A76F}\\x{A771}-"        \
    "\\x{A787}\\x{A78B}-\\x{A78E}\\x{AB70}-\\x{ABBF}\\x{FB00}-\\x{FB06}\\x{FB13}-\\x{FB17}"        \
    "\\x{FF21}-\\x{FF3A}\\x{FF41}-\\x{FF5A}\\x{10400}-\\x{1044F}\\x{104B0}-\\x{104D3}"             \
    "\\x{104D8}-\\x{104FB}\\x{10C80}-\\x{10CB2}\\x{10CC0}-\\x{10CF2}\\x{118A0}-\\x{118DF}"         \
    "\\x{1E900}-\\x{1E943}"

static const cf_tokenizer_rule rules[] = {
    {.names = "gpt-2 gpt2 r50k_base p50k_base phi-2 mpt jais exaone4 trillion granite-docling"},
    {.names = "olmo gptneox", .nfc = true},
    {.names = "qwen2 stablelm2 megrez qwen deepseek-r1-qwen",
     .patterns = {CONTRACTIONS WORD "\\p{N}" TAIL},
     .nfc = true},
    {.names = "grok-2 hunyuan solar-open word-split-V1",
     .patterns = {CONTRACTIONS WORD "\\p{N}" TAIL}},
    {.names = "qwen35",
     .patterns = {CONTRACTIONS
                  "|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]"
                  "+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
     .nfc = true},
    {.names = "dbrx smaug-bpe glm4 chatglm-bpe cl100k_base",
     .patterns = {CONTRACTIONS WORD "\\p{N}{1,3}" TAIL}},
    {.names = "llama-bpe llama3 llama-v3 falcon3 pixtral lfm2",
     .patterns = {CONTRACTIONS WORD "\\p{N}{1,3}" TAIL},
     .whole = true,
     .adds_bos = true},
    {.names = "gpt-4o llama4 minimax-m2 o200k_base",
     .patterns = {CASED(UPPER, LOWER, CONTRACTIONS "?") "\\p{N}{1,3}" CASED_TAIL}},
    {.names = "tekken",
     .patterns = {CASED(UPPER, LOWER, "") "\\p{N}" CASED_TAIL},
     .whole = true,
     .adds_bos = true},
    {.names = "kimi-k2 TikTokenTokenizer",
     .patterns = {"[\\p{Han}]+|" CASED(NO_HAN_UPPER, NO_HAN_LOWER,
                                       CONTRACTIONS "?") "\\p{N}{1,3}" TAIL},
     .whole = true},
    {.names = "deepseek-llm",
     .patterns = {"[\r\n]", "\\s?[" CASED_LETTERS "]+",
                  "\\s?[!-/:-~\\x{FF01}-\\x{FF0F}\\x{FF1A}-\\x{FF5E}\\x{2018}-\\x{201F}"
                  "\\x{3000}-\\x{3002}]+",
                  "\\s+$", HAN, "\\p{N}"}},
    {.names = "deepseek-coder",
     .patterns = {"[\r\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", HAN, "\\p{N}"}},
    {.names = "deepseek-v3 hunyuan-dense joyai-llm",
     .patterns = {"\\p{N}{1,3}", "[\\x{4E00}-\\x{9FA5}\\x{3040}-\\x{309F}\\x{30A0}-\\x{30FF}]+",
                  MARKED}},
    {.names = "longcat longcat-flash",
     .patterns = {CONTRACTIONS WORD "\\p{N}" TAIL,
                  " ?[\\x{FF01}-\\x{FF0F}\\x{FF1A}-\\x{FF5E}\\x{2018}-\\x{201F}\\x{3000}-\\x{3002}"
                  "\\x{300A}-\\x{300D}\\x{3010}\\x{3011}]+",
                  HAN}},
    {.names = "bailingmoe bailingmoe2 llada-moe",
     .patterns =
         {"'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]++"
          "[\\r\\n]*|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+"}},
    {.names = "starcoder refact command-r smollm codeshell minerva-7b exaone mellum2",
     .patterns = {"\\p{N}", "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|"
                            "\\s+(?!\\S)|\\s+"}},
    /* What is assumed of a file that names nothing. */
    {.names = "default"},
};

const cf_tokenizer_rules cf_tokenizer_rules_known = {
    .rules = rules,
    .n = sizeof rules / sizeof *rules,
    .merges = "gpt2",
    .pieces = "llama",
    .unigram = "t5",
};
