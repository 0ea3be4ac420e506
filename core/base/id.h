/* IDs of objects and jobs: 40 lower-case hexadecimal digits (SPEC.md 2): 16 name the owner node, 16
 * are random, 8 are an index. A job has index 0; its outputs have the same first 32 digits. */
#ifndef MOBULA_BASE_ID_H
#define MOBULA_BASE_ID_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/error.h"

enum {
    MOB_ID_BYTES = 20,
    MOB_ID_OWNER_BYTES = 8,
    MOB_ID_RANDOM_BYTES = 8,
    MOB_ID_DIGITS = 40,
    MOB_ID_STRING_BYTES = 41, /* with the terminator */
};

/* Indexes with a meaning of their own. An output takes the number of its place in the spec, from 1;
 * a job without named outputs has one, its standard output, as index 1. */
#define MOB_INDEX_JOB 0u
#define MOB_INDEX_FIRST_OUTPUT 1u
#define MOB_INDEX_STDERR 0xffffffffu
#define MOB_INDEX_STDOUT 0xfffffffeu /* only where named outputs exist */

struct mob_id {
    uint8_t bytes[MOB_ID_BYTES];
};

/* Reads exactly MOB_ID_DIGITS lower-case digits out of `text`, which has `length` bytes and needs
 * no terminator. False (and `*out` untouched) for anything else. */
bool mob_id_parse(const char *text, size_t length, struct mob_id *out);

/* Writes the 40 digits and a terminator into `out`. Returns `out`. */
char *mob_id_format(const struct mob_id *id, char out[MOB_ID_STRING_BYTES]);

/* A new ID of `owner` with random middle and the given index, from the kernel's generator
 * (getrandom(2)), buffered by thread. -EIO if the kernel gives no random bytes. */
MOB_MUST_CHECK errint_t mob_id_new(const uint8_t owner[MOB_ID_OWNER_BYTES], uint32_t index,
                                   struct mob_id *out);

/* The same ID with another index. */
struct mob_id mob_id_with_index(const struct mob_id *id, uint32_t index);
uint32_t mob_id_index(const struct mob_id *id);

static inline bool mob_id_equal(const struct mob_id *a, const struct mob_id *b)
{
    return __builtin_memcmp(a->bytes, b->bytes, MOB_ID_BYTES) == 0;
}

#endif
