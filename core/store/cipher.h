/* Encryption: what goes to disk is encrypted, and can't be changed without that being noticed.
 *
 * AES-256-GCM (NIST SP 800-38D), by OpenSSL. Every block, and every value, is encrypted with a data
 * key of its own, which is drawn at random when it is written and never used again: so no nonce can
 * come twice with one key, whatever crashes, is written again or is copied back from a backup; the
 * nonces are the numbers of the chunks. The data key is kept beside what it encrypts, wrapped by
 * the user's key (AES key wrap, RFC 3394, which takes no nonce). What a block is, number of its
 * data file, its place there and its length, is authenticated with it: blocks can't change places.
 *
 * An encrypted file has a head of 4096 bytes before each block of 1 MiB of its content:
 *
 *      0  "mobulaeb"           24  number of the block
 *      8  version, 1           32  data key, wrapped (40 bytes)
 *     12  bytes of content     72  16 tags of 16 bytes: one for each chunk of 64 KiB
 *     16  number of the file  328  zeros
 *
 * Numbers are little-endian. There are no holes: what is zeros is encrypted as well, and a head of
 * zeros is no head.
 *
 * Nothing here knows the store. A key is read only once made: any thread, several at a time. */
#ifndef MOBULA_CORE_STORE_CIPHER_H
#define MOBULA_CORE_STORE_CIPHER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "core/base/error.h"

enum {
    CIPHER_BLOCK_BYTES = 1 << 20, /* of content */
    CIPHER_HEAD_BYTES = 4096,
    CIPHER_STRIDE_BYTES = CIPHER_HEAD_BYTES + CIPHER_BLOCK_BYTES,
    CIPHER_CHUNK_BYTES = 64 << 10,
    CIPHER_NAME_BYTES = 33,
    CIPHER_VALUE_BYTES = 40 + 16, /* more than the value has */
};

struct cipher_key;

/* The key in a file: 32 bytes, or 64 hexadecimal digits and perhaps a newline. -ENOENT, -EACCES and
 * others, -EINVAL (it has something else), -ENOMEM, -ENOTSUP (this OpenSSL has no AES), each with a
 * sentence that names the file. The caller frees *out. */
MOB_MUST_CHECK errint_t cipher_key_load(const char *path, struct cipher_key **out,
                                        struct mob_error *err);
/* Wipes it. NULL is allowed. */
void cipher_key_free(struct cipher_key *key);
/* 32 digits, which tell one key from another and nothing about it. They live as long as the key. */
const char *cipher_key_name(const struct cipher_key *key);

/* How long an encrypted file of `size` bytes of content is, and where in it a block begins: its
 * head.
 */
static inline uint64_t cipher_file_bytes(uint64_t size)
{
    uint64_t blocks = size / CIPHER_BLOCK_BYTES + (size % CIPHER_BLOCK_BYTES != 0);
    return size + blocks * CIPHER_HEAD_BYTES;
}
/* How much content an encrypted file of `bytes` has. */
static inline uint64_t cipher_content_bytes(uint64_t bytes)
{
    uint64_t blocks = bytes / CIPHER_STRIDE_BYTES + (bytes % CIPHER_STRIDE_BYTES != 0);
    return bytes > blocks * CIPHER_HEAD_BYTES ? bytes - blocks * CIPHER_HEAD_BYTES : 0;
}
static inline uint64_t cipher_block_offset(uint64_t block)
{
    return block * CIPHER_STRIDE_BYTES;
}

/* Encrypts in place: `buffer` has CIPHER_HEAD_BYTES for the head, which is filled, and behind them
 * `bytes` of content, 1 to CIPHER_BLOCK_BYTES. -ENOMEM; -EIO: OpenSSL has no random bytes. */
MOB_MUST_CHECK errint_t cipher_encrypt_block(const struct cipher_key *key, uint64_t file,
                                             uint64_t block, void *buffer, size_t bytes);
/* Decrypts in place; the content is behind the head. -EBADMSG: it is not what was encrypted with
 * this key as that block, of that length; then the content is undefined, and must not be used.
 * -ENOMEM.
 */
MOB_MUST_CHECK errint_t cipher_decrypt_block(const struct cipher_key *key, uint64_t file,
                                             uint64_t block, void *buffer, size_t bytes);
/* How many bytes of content a head says, 1 to CIPHER_BLOCK_BYTES. -EBADMSG: it is no head of that
 * block; *bytes is 0 then. */
MOB_MUST_CHECK errint_t cipher_head_bytes(const void *head, uint64_t file, uint64_t block,
                                          size_t *bytes);

/* An encrypted file that is read. */
struct cipher_file {
    int fd;          /* not O_DIRECT */
    bool now;        /* the disk is not waited for: -EAGAIN if it would have to be */
    uint64_t number; /* of the data file */
    uint64_t size;   /* of the content; cipher_read_block() doesn't ask */
};

/* A block that may be anywhere: the head is at `place` of the file. */
struct cipher_block {
    uint64_t number, place;
    size_t bytes; /* of content */
};
/* Reads bytes `begin` to `end` (not after the last one) of its content; each chunk that is touched
 * is verified. -EBADMSG: it is not that block, of that length; -ENODATA: the file is too short;
 * -ENOMEM; or what a read says: then `out` is undefined, and must not be used. Blocks for the disk,
 * unless `now`. */
MOB_MUST_CHECK errint_t cipher_read_block(const struct cipher_key *key,
                                          const struct cipher_file *file,
                                          const struct cipher_block *block, size_t begin,
                                          size_t end, void *out);

/* As pread(2) of the content of an encrypted file; each chunk that is touched is verified before
 * anything of it is returned. Less than `bytes` only at the end of the content. *bad_block (may be
 * NULL): where an error is. -EBADMSG; -ENODATA: the file is too short; -ENOMEM; or what a read
 * says. Blocks for the disk, unless `now`. */
ssize_t cipher_pread(const struct cipher_key *key, const struct cipher_file *file, void *buffer,
                     size_t bytes, uint64_t offset, uint64_t *bad_block);

/* What a value of `bytes` takes in the database, encrypted or not. */
static inline uint64_t cipher_value_bytes(uint64_t bytes, bool encrypted)
{
    return bytes + (encrypted ? CIPHER_VALUE_BYTES : 0);
}

/* A value in a database, with what tells it from others (`kind`, `number`): writes
 * bytes + CIPHER_VALUE_BYTES to `out`, which doesn't overlap `value`. -ENOMEM, -EIO. */
MOB_MUST_CHECK errint_t cipher_encrypt_value(const struct cipher_key *key, uint32_t kind,
                                             uint64_t number, const void *value, size_t bytes,
                                             void *out);
/* Back: writes bytes - CIPHER_VALUE_BYTES to `out`. -EBADMSG (`out` is wiped), -ENOMEM. */
MOB_MUST_CHECK errint_t cipher_decrypt_value(const struct cipher_key *key, uint32_t kind,
                                             uint64_t number, const void *encrypted, size_t bytes,
                                             void *out);

#endif
