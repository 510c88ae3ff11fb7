/* The library in sixty lines: `example MODEL PROMPT` prints a continuation. The README shows it,
 * and test_cli compiles and runs it. */
#include <stdio.h>
#include <string.h>

#include "runtime/catflap.h"

int main(int argc, char **argv)
{
    cf_err err = {0};
    cf_engine *engine = NULL;
    cf_session *session = NULL;
    cf_sampler *sampler = NULL;
    int32_t ids[256];
    size_t n = 0;
    cf_options options;
    cf_options_init(&options);
    options.vram_bytes = 64 << 20; /* the experts that do not fit are streamed */

    if (argc != 3) {
        fprintf(stderr, "usage: example MODEL PROMPT\n");
        return 2;
    }
    if (cf_engine_open(&engine, argv[1], &options, &err) < 0)
        goto end;
    cf_engine_info info;
    cf_engine_get_info(engine, &info);
    const cf_tokenizer *tok = cf_engine_tokenizer(engine);
    if (!tok)
        fprintf(stderr, "example: %s has no tokenizer\n", argv[1]);
    if (!tok || cf_session_create(&session, engine, &err) < 0 ||
        cf_sampler_create(&sampler, &(cf_sampler_params){.top_p = 1}, info.vocab, &err) < 0 ||
        cf_tokenizer_encode(tok, argv[2], strlen(argv[2]), CF_TOK_ADD_PREFIX, ids, 256, &n, &err) <
            0)
        goto end;
    if (n > 256) {
        fprintf(stderr, "example: the prompt has %zu tokens, at most 256 are taken\n", n);
        n = 0;
        goto end;
    }
    cf_session_extend(session, ids, (uint32_t)n, CF_PHASE_PROMPT, NULL, &err);
    for (int i = 0; i < 24 && !err.code; i++) {
        int32_t id = cf_sampler_pick(sampler, cf_session_logits(session));
        if (cf_engine_is_eos(engine, id))
            break;
        size_t bytes;
        const char *piece = cf_tokenizer_piece(tok, id, &bytes);
        fwrite(piece, 1, bytes, stdout);
        cf_session_extend(session, &id, 1, CF_PHASE_DECODE, NULL, &err);
    }
    putchar('\n');
end:
    if (err.code)
        fprintf(stderr, "example: %s\n", err.msg);
    cf_sampler_destroy(&sampler);
    cf_session_destroy(&session);
    cf_engine_close(&engine);
    return err.code || !n;
}
