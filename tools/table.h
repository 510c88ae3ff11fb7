/* Tables for people: columns as wide as their widest cell, numbers to the right.
 *
 * Cells are copied; control characters (names come from files) are shown as '?'. Out of memory
 * makes the table incomplete, never wrong: cells are simply empty. */
#ifndef CF_TOOLS_TABLE_H
#define CF_TOOLS_TABLE_H

#include <stdint.h>
#include <stdio.h>

typedef struct cf_table cf_table;

/* align: one character a column, 'l' or 'r'. */
cf_table *cf_table_create(const char *align);
void cf_table_destroy(cf_table **table); /* accepts NULL; leaves NULL */
/* The next cell of the current row. */
void cf_table_cell(cf_table *table, const char *format, ...) __attribute__((format(printf, 2, 3)));
void cf_table_end_row(cf_table *table); /* missing cells stay empty */
/* A line of "-" under what came before (the heading). */
void cf_table_rule(cf_table *table);
/* Each line begins with `indent` spaces. */
void cf_table_print(const cf_table *table, FILE *out, int indent);

/* "5.06 MiB"; exact below a KiB ("512 B"). buf of 32 bytes; returns buf. */
const char *cf_bytes_text(uint64_t bytes, char *buf, size_t size);
/* "31.4 B", "560 M": parameters, powers of 1000. */
const char *cf_count_text(uint64_t count, char *buf, size_t size);

#endif
