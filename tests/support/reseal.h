/* A pack whose bytes were changed on purpose gets the checksums that its new bytes have, so that
 * what lies behind the checksums is tested too. */
#ifndef CF_TESTS_RESEAL_H
#define CF_TESTS_RESEAL_H

#include <stdbool.h>
#include <stdint.h>

/* The header's own sum, of a file that is a GGUF file with the keys of a pack at all. */
bool reseal_header(uint8_t *file, uint64_t bytes);
/* The sums of regions, then those of the sums and of the header; the header is as it was written.
 */
bool reseal_pack(const char *path);

#endif
