/* The tokens per second that the drive allows: see info_speed.h. */
#include "tools/info_speed.h"

#include "runtime/base/align.h"
#include "tools/table.h"
#include "tools/tune.h"

/* What a token reads of the drive, at most. */
static void bytes_count(cf_info_speed *s, const cf_memory_plan *p, const cf_model *m)
{
    s->dense_bytes = p->dense.streamed_bytes - p->hold.bytes;
    /* Without the encoder: it has run when decode begins. */
    for (uint32_t i = m->n_encoder_steps; i < m->n_steps; i++) {
        const cf_step *step = &m->steps[i];
        if (step->kind == CF_STEP_EXPERTS) { /* on average, where they are compressed */
            const cf_moe_def *moe = &m->moe[step->u.experts.moe];
            s->expert_bytes += moe->top_k * (cf_moe_stored_bytes(moe) / moe->experts);
        } else if (step->kind == CF_STEP_ROWS)
            s->row_bytes += step->u.rows.n_tables * p->row_window_bytes;
        else if (step->kind == CF_STEP_EMBED && step->u.embed.resident == CF_NO_WEIGHT)
            s->row_bytes += p->row_window_bytes;
    }
    s->zero_experts = m->spec.zero_experts > 0;
    uint64_t kept = (uint64_t)p->shape.n_slots + p->shape.n_tier;
    s->uniform = 1;
    if (p->total_records > kept)
        s->uniform = (double)kept / (double)p->total_records;
}

static void case_add(cf_info_speed *s, double hit_rate)
{
    uint32_t at = s->n_cases++;
    for (; at > 0 && s->cases[at - 1].hit_rate > hit_rate; at--)
        s->cases[at] = s->cases[at - 1];
    cf_speed_case *c = &s->cases[at];
    *c = (cf_speed_case){.hit_rate = hit_rate};
    c->bytes = s->dense_bytes + s->row_bytes + (uint64_t)((1 - hit_rate) * (double)s->expert_bytes);
    if (c->bytes)
        c->tok_per_s = s->drive_rate / (double)c->bytes;
}

int cf_info_speed_make(cf_info_speed *out, const cf_info_memory *memory, const cf_model *model,
                       double drive_rate, cf_err *err)
{
    *out = (cf_info_speed){.drive_rate = drive_rate};
    if (drive_rate <= 0) {
        int rc = cf_tune_drive_measure(model, &out->drive_rate, out->why, sizeof out->why, err);
        if (rc < 0)
            return rc;
        out->measured = out->drive_rate > 0;
    }
    bytes_count(out, &memory->plan, model);
    case_add(out, out->uniform);
    if (out->uniform < 1) {
        case_add(out, 0);
        case_add(out, 0.5);
        case_add(out, 0.9);
    }
    return 0;
}

/* ---- for people ---- */

static void parts_print(const cf_info_speed *s, FILE *out)
{
    char text[32];
    fprintf(out, "  Of a token: experts, at most %s; those found are not read",
            cf_bytes_text(s->expert_bytes, text, sizeof text));
    if (s->dense_bytes)
        fprintf(out, ";\n  streamed dense weights, %s",
                cf_bytes_text(s->dense_bytes, text, sizeof text));
    if (s->row_bytes)
        fprintf(out, "; table rows, %s", cf_bytes_text(s->row_bytes, text, sizeof text));
    fprintf(out, ".\n  Computing and copying are not counted.%s\n",
            s->zero_experts ? " A token that chooses zero experts reads less." : "");
}

void cf_info_speed_print(const cf_info_speed *s, FILE *out)
{
    char text[32];
    fprintf(out, "\nPredicted tokens per second");
    if (s->drive_rate <= 0) {
        fprintf(out,
                ": not known, the drive is not measured: %s\n  (--drive GB/S says what it "
                "gives).\n",
                s->why);
        return;
    }
    fprintf(out, " in decode, for a drive of %.2f GB/s (%s):\n\n", s->drive_rate / 1e9,
            s->measured ? "measured now, on random records" : "as given");
    cf_table *t = cf_table_create("lrr");
    cf_table_cell(t, "experts found in VRAM or RAM");
    cf_table_cell(t, "read a token");
    cf_table_cell(t, "tokens per second");
    cf_table_end_row(t);
    cf_table_rule(t);
    for (uint32_t i = 0; i < s->n_cases; i++) {
        const cf_speed_case *c = &s->cases[i];
        bool uniform = c->hit_rate >= s->uniform && c->hit_rate <= s->uniform;
        cf_table_cell(t, "%.1f %%%s", 100 * c->hit_rate,
                      c->hit_rate >= 1   ? ", all are kept"
                      : c->hit_rate <= 0 ? ", the worst case"
                      : uniform          ? ", if all were chosen equally often"
                                         : "");
        cf_table_cell(t, "%s", cf_bytes_text(c->bytes, text, sizeof text));
        if (c->bytes)
            cf_table_cell(t, c->tok_per_s < 10 ? "%.3f" : "%.1f", c->tok_per_s);
        else
            cf_table_cell(t, "not bound by the drive");
        cf_table_end_row(t);
    }
    cf_table_print(t, out, 2);
    cf_table_destroy(&t);
    fputc('\n', out);
    parts_print(s, out);
}

/* ---- for programs ---- */

json_t *cf_info_speed_json(const cf_info_speed *s)
{
    json_t *cases = json_array();
    for (uint32_t i = 0; i < s->n_cases; i++)
        json_array_append_new(cases, json_pack("{s:f, s:I, s:f}", "hit_rate", s->cases[i].hit_rate,
                                               "bytes_per_token", (json_int_t)s->cases[i].bytes,
                                               "tok_per_s", s->cases[i].tok_per_s));
    return json_pack("{s:f, s:b, s:s, s:I, s:I, s:I, s:f, s:o}", "drive_bytes_per_s", s->drive_rate,
                     "drive_measured", s->measured, "why_not", s->why, "dense_bytes",
                     (json_int_t)s->dense_bytes, "expert_bytes", (json_int_t)s->expert_bytes,
                     "row_bytes", (json_int_t)s->row_bytes, "uniform_hit_rate", s->uniform, "cases",
                     cases);
}
