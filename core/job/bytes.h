/* Bytes written into and read out of a flat buffer: job records, and requests to the launcher.
 *
 * Both ends are sticky: after the first failure (no memory; a read past the end) every call does
 * nothing, and `failed` says so once at the end. Readers never trust a length before it is compared
 * with what is left. */
#ifndef MOBULA_CORE_JOB_BYTES_H
#define MOBULA_CORE_JOB_BYTES_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct bytes_writer {
    uint8_t *data; /* malloc'd; the user frees it */
    size_t used, capacity;
    bool failed;
};

static inline void bytes_put(struct bytes_writer *writer, const void *data, size_t bytes)
{
    if (writer->failed || bytes == 0)
        return;
    if (bytes > writer->capacity - writer->used) {
        size_t capacity = writer->capacity ? writer->capacity : 256;
        while (capacity - writer->used < bytes && capacity <= SIZE_MAX / 4)
            capacity *= 2;
        uint8_t *larger = capacity - writer->used < bytes ? NULL : realloc(writer->data, capacity);
        if (!larger) {
            writer->failed = true;
            return;
        }
        writer->data = larger;
        writer->capacity = capacity;
    }
    memcpy(writer->data + writer->used, data, bytes);
    writer->used += bytes;
}

static inline void bytes_put_u32(struct bytes_writer *writer, uint32_t value)
{
    bytes_put(writer, &value, sizeof value);
}
static inline void bytes_put_u64(struct bytes_writer *writer, uint64_t value)
{
    bytes_put(writer, &value, sizeof value);
}
/* With its terminator, so that a reader can point into the buffer. */
static inline void bytes_put_string(struct bytes_writer *writer, const char *text)
{
    bytes_put(writer, text, strlen(text) + 1);
}

struct bytes_reader {
    const uint8_t *data;
    size_t left;
    bool failed;
};

static inline void bytes_get(struct bytes_reader *reader, void *out, size_t bytes)
{
    if (reader->failed || bytes > reader->left) {
        reader->failed = true;
        memset(out, 0, bytes);
        return;
    }
    if (bytes == 0)
        return;
    memcpy(out, reader->data, bytes);
    reader->data += bytes;
    reader->left -= bytes;
}
static inline uint32_t bytes_get_u32(struct bytes_reader *reader)
{
    uint32_t value;
    bytes_get(reader, &value, sizeof value);
    return value;
}
static inline uint64_t bytes_get_u64(struct bytes_reader *reader)
{
    uint64_t value;
    bytes_get(reader, &value, sizeof value);
    return value;
}
/* A terminated string of at most `limit` bytes, pointing into the buffer; "" after a failure. */
static inline const char *bytes_get_string(struct bytes_reader *reader, size_t limit)
{
    const uint8_t *end =
        reader->failed || !reader->left ? NULL : memchr(reader->data, 0, reader->left);
    if (!end || (size_t)(end - reader->data) > limit) {
        reader->failed = true;
        return "";
    }
    const char *text = (const char *)reader->data;
    reader->left -= (size_t)(end - reader->data) + 1;
    reader->data = end + 1;
    return text;
}
/* `bytes` raw bytes in place, NULL after a failure. */
static inline const uint8_t *bytes_get_raw(struct bytes_reader *reader, size_t bytes)
{
    if (reader->failed || bytes > reader->left) {
        reader->failed = true;
        return NULL;
    }
    const uint8_t *data = reader->data;
    reader->data += bytes;
    reader->left -= bytes;
    return data;
}

#endif
