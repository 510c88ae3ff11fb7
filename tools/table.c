/* Tables for people: see table.h. */
#include "tools/table.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_COLUMNS = 16, MAX_CELL = 512, RULE_MAX = 24 };

typedef struct row {
    bool rule;
    char *cells[MAX_COLUMNS];
} row;

struct cf_table {
    uint32_t columns;
    char align[MAX_COLUMNS];
    row *rows;
    uint32_t n_rows, max_rows;
    row current;
    uint32_t n_cells;
};

cf_table *cf_table_create(const char *align)
{
    cf_table *t = calloc(1, sizeof *t);
    if (!t)
        return NULL;
    size_t n = strlen(align);
    t->columns = n < MAX_COLUMNS ? (uint32_t)n : MAX_COLUMNS;
    memcpy(t->align, align, t->columns);
    return t;
}

static void row_finish(row *r)
{
    for (int i = 0; i < MAX_COLUMNS; i++)
        free(r->cells[i]);
    *r = (row){0};
}

void cf_table_destroy(cf_table **table)
{
    cf_table *t = *table;
    if (!t)
        return;
    for (uint32_t i = 0; i < t->n_rows; i++)
        row_finish(&t->rows[i]);
    row_finish(&t->current);
    free(t->rows);
    free(t);
    *table = NULL;
}

void cf_table_cell(cf_table *table, const char *format, ...)
{
    char text[MAX_CELL];
    if (!table || table->n_cells == table->columns)
        return;
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    for (char *p = text; *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f)
            *p = '?';
    table->current.cells[table->n_cells++] = strdup(text);
}

void cf_table_end_row(cf_table *table)
{
    if (!table)
        return;
    if (table->n_rows == table->max_rows) {
        uint32_t max = table->max_rows ? table->max_rows * 2 : 16;
        row *rows = realloc(table->rows, max * sizeof *rows);
        if (!rows) {
            row_finish(&table->current);
            table->n_cells = 0;
            return;
        }
        table->rows = rows;
        table->max_rows = max;
    }
    table->rows[table->n_rows++] = table->current;
    table->current = (row){0};
    table->n_cells = 0;
}

void cf_table_rule(cf_table *table)
{
    if (!table)
        return;
    table->current.rule = true;
    cf_table_end_row(table);
}

/* Columns on a terminal: bytes that do not continue a UTF-8 character. */
static int text_width(const char *s)
{
    int n = 0;
    for (; *s; s++)
        n += ((unsigned char)*s & 0xc0) != 0x80;
    return n;
}

static void row_print(const cf_table *t, const row *r, const int *width, FILE *out, int indent)
{
    /* Built as a whole, so that blanks at the end of a line can be left out. */
    char line[MAX_COLUMNS * (MAX_CELL + 2)];
    size_t len = 0;
    for (uint32_t c = 0; c < t->columns; c++) {
        const char *cell = r->cells[c] ? r->cells[c] : "";
        int pad = width[c] - text_width(cell);
        if (c)
            len += (size_t)snprintf(line + len, sizeof line - len, "  ");
        if (r->rule) {
            /* Under a wide last column of text a short rule is enough. */
            bool cut = c + 1 == t->columns && t->align[c] == 'l' && width[c] > RULE_MAX;
            size_t n = cut ? RULE_MAX : (size_t)width[c];
            memset(line + len, '-', n);
            len += n;
            continue;
        }
        if (t->align[c] == 'r')
            len += (size_t)snprintf(line + len, sizeof line - len, "%*s%s", pad, "", cell);
        else
            len += (size_t)snprintf(line + len, sizeof line - len, "%s%*s", cell, pad, "");
    }
    while (len && line[len - 1] == ' ')
        len--;
    fprintf(out, "%*s%.*s\n", len ? indent : 0, "", (int)len, line);
}

void cf_table_print(const cf_table *table, FILE *out, int indent)
{
    if (!table)
        return;
    int width[MAX_COLUMNS] = {0};
    for (uint32_t i = 0; i < table->n_rows; i++)
        for (uint32_t c = 0; c < table->columns; c++) {
            const char *cell = table->rows[i].cells[c];
            int w = cell ? text_width(cell) : 0;
            width[c] = w > width[c] ? w : width[c];
        }
    for (uint32_t i = 0; i < table->n_rows; i++)
        row_print(table, &table->rows[i], width, out, indent);
}

const char *cf_bytes_text(uint64_t bytes, char *buf, size_t size)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    int u = 0;
    double v = (double)bytes;
    while (v >= 1023.995 && u < 6) {
        v /= 1024;
        u++;
    }
    snprintf(buf, size, u ? "%.2f %s" : "%.0f %s", v, units[u]);
    return buf;
}

const char *cf_count_text(uint64_t count, char *buf, size_t size)
{
    static const char *const units[] = {"", " k", " M", " B", " T"};
    int u = 0;
    double v = (double)count;
    while (v >= 999.95 && u < 4) {
        v /= 1000;
        u++;
    }
    snprintf(buf, size, u ? "%.1f%s" : "%.0f%s", v, units[u]);
    return buf;
}
