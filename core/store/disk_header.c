/* What a spill directory says of itself. See disk_header.h. */
#include "core/store/disk_header.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/base/util.h"
#include "core/store/names.h"

enum { VERSION = 1, FLAG_SEALED = 1, FLAG_ENCRYPTED = 2 };
enum { READ_BLOCKS = 8, READ_ALIGNMENT = 4096 };
static const char magic[8] = "mobulaob";

_Static_assert(sizeof(XXH128_canonical_t) == DISK_DIGEST_BYTES &&
                   sizeof(XXH128_canonical_t) == sizeof(struct spill_sum),
               "digests and sums are canonical XXH3-128");

/* --- digits --- */

static const char digits[] = "0123456789abcdef";

static int digit_value(char digit)
{
    const char *found = digit ? strchr(digits, digit) : NULL;
    return found ? (int)(found - digits) : -1;
}

static void put_digits(const uint8_t *bytes, size_t count, char *out)
{
    for (size_t i = 0; i < count; i++) {
        out[2 * i] = digits[bytes[i] >> 4];
        out[2 * i + 1] = digits[bytes[i] & 15];
    }
    out[2 * count] = '\0';
}

char *data_name(uint64_t file, char out[DATA_NAME_BYTES])
{
    for (int i = 0; i < 16; i++)
        out[i] = digits[file >> (60 - 4 * i) & 15];
    out[16] = '\0';
    return out;
}

bool data_name_parse(const char *name, uint64_t *file)
{
    uint64_t value = 0;
    if (strlen(name) != 16)
        return false;
    for (int i = 0; i < 16; i++) {
        int digit = digit_value(name[i]);
        if (digit < 0)
            return false;
        value = value << 4 | (uint64_t)digit;
    }
    *file = value;
    return value >= NAMES_FIRST_FREE_NUMBER && value < STORE_NUMBER_LIMIT;
}

/* --- mobula-spill --- */

char *disk_identity_format(const struct disk_identity *identity, char out[DISK_IDENTITY_TEXT_BYTES])
{
    char owner[2 * MOB_ID_OWNER_BYTES + 1];
    put_digits(identity->owner, MOB_ID_OWNER_BYTES, owner);
    int length = snprintf(out, DISK_IDENTITY_TEXT_BYTES,
                          "mobula spill directory\nversion %d\nowner %s\n", VERSION, owner);
    if (*identity->directory)
        length += snprintf(out + length, (size_t)(DISK_IDENTITY_TEXT_BYTES - length),
                           "directory %s\n", identity->directory);
    if (*identity->key)
        snprintf(out + length, (size_t)(DISK_IDENTITY_TEXT_BYTES - length), "key %s\n",
                 identity->key);
    return out;
}

/* The 32 digits behind `word`, if it is in the text. False: it is, and they aren't. */
static bool take_digits(const char *text, const char *word, char out[DISK_IDENTITY_BYTES])
{
    const char *found = strstr(text, word);
    for (size_t i = 0; found && i < DISK_IDENTITY_BYTES - 1; i++) {
        out[i] = found[strlen(word) + i];
        if (digit_value(out[i]) < 0)
            return false;
    }
    return true;
}
_Static_assert((int)CIPHER_NAME_BYTES == (int)DISK_IDENTITY_BYTES, "both have 32 digits");

/* Takes what it can and writes it again: what comes out must be the same. */
errint_t disk_identity_parse(const char *text, size_t bytes, struct disk_identity *out)
{
    static const char owner_word[] = "owner ";
    char copy[DISK_IDENTITY_TEXT_BYTES], again[DISK_IDENTITY_TEXT_BYTES];
    *out = (struct disk_identity){0};
    if (bytes >= sizeof copy || memchr(text, '\0', bytes))
        return -EINVAL;
    memcpy(copy, text, bytes);
    copy[bytes] = '\0';
    const char *owner = strstr(copy, owner_word);
    for (int i = 0; owner && i < 2 * MOB_ID_OWNER_BYTES; i++) {
        int digit = digit_value(owner[sizeof owner_word - 1 + (size_t)i]);
        if (digit < 0)
            return -EINVAL;
        out->owner[i / 2] = (uint8_t)(out->owner[i / 2] << 4 | digit);
    }
    if (!take_digits(copy, "directory ", out->directory) || !take_digits(copy, "key ", out->key))
        return -EINVAL;
    return strcmp(disk_identity_format(out, again), copy) ? -EINVAL : 0;
}

errint_t disk_identity_new(char out[DISK_IDENTITY_BYTES])
{
    uint8_t bytes[(DISK_IDENTITY_BYTES - 1) / 2];
    if (getrandom(bytes, sizeof bytes, 0) != (ssize_t)sizeof bytes)
        return -EIO;
    put_digits(bytes, sizeof bytes, out);
    return 0;
}

/* --- the record --- */

static void put_number(uint8_t *place, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++)
        place[i] = (uint8_t)(value >> 8 * i);
}

static uint64_t get_number(const uint8_t *place, int bytes)
{
    uint64_t value = 0;
    for (int i = bytes; i-- > 0;)
        value = value << 8 | place[i];
    return value;
}

uint64_t disk_header_file_bytes(const struct disk_header *header)
{
    return header->encrypted ? cipher_file_bytes(header->size) : header->size;
}

void disk_header_seal(struct disk_header *header, const struct spill_sum *sums)
{
    XXH128_canonical_t digest;
    XXH128_canonicalFromHash(&digest,
                             XXH3_128bits(sums, spill_block_count(header->size) * sizeof *sums));
    memcpy(header->digest, &digest, sizeof digest);
    header->sealed = true;
}

void disk_header_encode(const struct disk_header *header, uint8_t out[DISK_HEADER_BYTES])
{
    memset(out, 0, DISK_HEADER_BYTES);
    memcpy(out, magic, sizeof magic);
    put_number(out + 8, VERSION, 4);
    put_number(out + 12,
               (header->sealed ? FLAG_SEALED : 0) | (header->encrypted ? FLAG_ENCRYPTED : 0), 4);
    memcpy(out + 16, header->id.bytes, MOB_ID_BYTES);
    put_number(out + 36, SPILL_BLOCK_BYTES, 4);
    put_number(out + 40, header->size, 8);
    put_number(out + 48, header->mtime_ns, 8);
    put_number(out + 56, header->file, 8);
    put_number(out + 64, header->mode, 4);
    put_number(out + 68, header->uid, 4);
    put_number(out + 72, header->gid, 4);
    if (header->sealed)
        memcpy(out + 80, header->digest, DISK_DIGEST_BYTES);
    put_number(out + 96, XXH3_64bits(out, 96), 8);
}

/* Is nothing but the number of the version wrong? Then it is ours, and damaged. */
static bool has_our_sum(const uint8_t *in)
{
    uint8_t ours[96];
    memcpy(ours, in, sizeof ours);
    put_number(ours + 8, VERSION, 4);
    return get_number(in + 96, 8) == XXH3_64bits(ours, sizeof ours);
}

errint_t disk_header_decode(const void *bytes, size_t count, struct disk_header *out)
{
    const uint8_t *in = bytes;
    uint8_t again[DISK_HEADER_BYTES];
    if (count < 12 || memcmp(in, magic, sizeof magic))
        return -EBADMSG;
    bool has_sum = count == DISK_HEADER_BYTES && has_our_sum(in);
    if (get_number(in + 8, 4) != VERSION)
        return has_sum ? -EBADMSG : -EPROTO;
    if (!has_sum)
        return -EBADMSG;
    *out = (struct disk_header){
        .file = get_number(in + 56, 8),
        .size = get_number(in + 40, 8),
        .mtime_ns = get_number(in + 48, 8),
        .mode = (uint32_t)get_number(in + 64, 4),
        .uid = (uint32_t)get_number(in + 68, 4),
        .gid = (uint32_t)get_number(in + 72, 4),
        .sealed = get_number(in + 12, 4) & FLAG_SEALED,
        .encrypted = get_number(in + 12, 4) & FLAG_ENCRYPTED,
    };
    memcpy(out->id.bytes, in + 16, MOB_ID_BYTES);
    memcpy(out->digest, in + 80, DISK_DIGEST_BYTES);
    if (out->size > INT64_MAX || out->file < NAMES_FIRST_FREE_NUMBER ||
        out->file >= STORE_NUMBER_LIMIT || out->mode & ~0777u)
        return -EBADMSG;
    disk_header_encode(out, again); /* other flags, other blocks: of a version that has them */
    return memcmp(again, in, sizeof again) ? -EPROTO : 0;
}

/* --- the attribute --- */

errint_t disk_header_read(int fd, struct disk_header *out)
{
    uint8_t bytes[DISK_HEADER_BYTES + 1];
    ssize_t count = fgetxattr(fd, DISK_HEADER_NAME, bytes, sizeof bytes);
    if (count < 0)
        return errno == ERANGE ? -EBADMSG : -errno;
    return disk_header_decode(bytes, (size_t)count, out);
}

errint_t disk_header_write(int fd, const struct disk_header *header)
{
    uint8_t bytes[DISK_HEADER_BYTES], present[DISK_HEADER_BYTES];
    disk_header_encode(header, bytes);
    if (fgetxattr(fd, DISK_HEADER_NAME, present, sizeof present) == (ssize_t)sizeof present &&
        !memcmp(present, bytes, sizeof bytes))
        return 0;
    if (fsetxattr(fd, DISK_HEADER_NAME, bytes, sizeof bytes, 0) == 0)
        return 0;
    errint_t error = -errno;
    /* What is there was not written for this object: a job may have set it. */
    if (error != -EOPNOTSUPP)
        (void)fremovexattr(fd, DISK_HEADER_NAME);
    return error;
}

/* --- verifying --- */

void spill_sum_block(const void *data, size_t bytes, struct spill_sum *out)
{
    XXH128_canonical_t sum;
    XXH128_canonicalFromHash(&sum, XXH3_128bits(data, bytes));
    memcpy(out, &sum, sizeof sum);
}

static void sum_blocks(const uint8_t *data, size_t bytes, size_t stride, struct spill_sum *sums)
{
    for (size_t at = 0; at < bytes; at += stride) {
        size_t rest = bytes - at;
        spill_sum_block(data + at, rest < stride ? rest : stride, sums++);
    }
}

/* All of the next `bytes`; the buffer has `room`. */
static errint_t read_part(int fd, uint8_t *buffer, size_t room, size_t bytes, uint64_t offset)
{
    ssize_t got;
    do
        got = pread(fd, buffer, room, (off_t)offset);
    while (got < 0 && errno == EINTR);
    if (got >= (ssize_t)bytes)
        return 0;
    /* It goes on where it stopped, which O_DIRECT may refuse. */
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags & ~O_DIRECT) < 0)
        return -errno;
    got = mob_pread_full(fd, buffer, bytes, (off_t)offset);
    return got < 0 ? (errint_t)got : got < (ssize_t)bytes ? -ENODATA : 0;
}

errint_t disk_header_verify(int fd, const struct disk_header *header, uint64_t *read_bytes)
{
    struct stat info;
    struct disk_header is = *header;
    size_t stride = header->encrypted ? CIPHER_STRIDE_BYTES : SPILL_BLOCK_BYTES;
    size_t room = READ_BLOCKS * stride;
    uint64_t done = 0, bytes = disk_header_file_bytes(header);
    errint_t error = 0;
    *read_bytes = 0;
    if (fstat(fd, &info) < 0)
        return -errno;
    if ((uint64_t)info.st_size != bytes)
        return -ENODATA;
    cleanup_free uint8_t *buffer = aligned_alloc(READ_ALIGNMENT, room);
    cleanup_free struct spill_sum *sums = calloc(spill_block_count(header->size) + 1, sizeof *sums);
    if (!buffer || !sums)
        return -ENOMEM;
    while (!error && done < bytes) {
        size_t part = bytes - done < room ? (size_t)(bytes - done) : room;
        error = read_part(fd, buffer, room, part, done);
        if (!error) {
            sum_blocks(buffer, part, stride, sums + done / stride);
            done += part;
        }
    }
    *read_bytes = done;
    if (error)
        return error;
    disk_header_seal(&is, sums);
    return memcmp(is.digest, header->digest, sizeof is.digest) ? -EBADMSG : 0;
}
