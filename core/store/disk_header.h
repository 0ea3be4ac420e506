/* What a spill directory says of itself, so that it can be read without the store it belongs to.
 *
 *   DIR/mobula-spill        text: version, owner, the directory's own identity, and the name of the
 *                           key, if files are encrypted
 *   DIR/objects/HEX         its extended attribute user.mobula.object says which object's bytes it
 *                           has, and has a digest of their checksums. It can't be in the file: the
 *                           kernel is given that from offset 0 on.
 *
 * The attribute has 104 bytes, numbers are little-endian:
 *
 *    0  "mobulaob"         40  size of the object
 *    8  version, 1         48  time of the commit, in ns since 1970
 *   12  flags              56  number of the data file
 *   16  ID                 64  mode, uid, gid, 0
 *   36  bytes of a block   80  XXH3-128 of the array of block checksums
 *                          96  XXH3-64 of the 96 bytes before
 *
 * Flag 1: the digest is there. A file that was written on disk is an object before its checksums
 * are made: then it is not set, and the digest is 0. Flag 2: the file is encrypted, as cipher.h
 * says it. Then it is longer than its object; and a checksum is of a block's head and ciphertext,
 * so that the file can be verified without its key. A file without the attribute is no object, or
 * not yet; or its filesystem has no such attributes. Nothing of the store needs them: it knows its
 * files by its own records.
 *
 * Nothing here knows the store; any thread. All that is decoded may be anybody's. */
#ifndef MOBULA_CORE_STORE_DISK_HEADER_H
#define MOBULA_CORE_STORE_DISK_HEADER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/error.h"
#include "core/base/id.h"
#include "core/store/cipher.h"
#include "core/store/spill_io.h"

/* --- mobula-spill --- */

#define DISK_IDENTITY_NAME "mobula-spill"
enum { DISK_IDENTITY_BYTES = 33, DISK_IDENTITY_TEXT_BYTES = 200 };

struct disk_identity {
    uint8_t owner[MOB_ID_OWNER_BYTES];
    char directory[DISK_IDENTITY_BYTES]; /* 32 digits; "": none yet, by an older version */
    char key[CIPHER_NAME_BYTES];         /* cipher_key_name(), 32 digits; "": none */
};

/* Reads the file's text. -EINVAL: it is no such file, or of another version. */
MOB_MUST_CHECK errint_t disk_identity_parse(const char *text, size_t bytes,
                                            struct disk_identity *out);
/* Its text, terminated. Returns `out`. */
char *disk_identity_format(const struct disk_identity *identity,
                           char out[DISK_IDENTITY_TEXT_BYTES]);
/* A new random identity. -EIO: the kernel gives no random bytes. */
MOB_MUST_CHECK errint_t disk_identity_new(char out[DISK_IDENTITY_BYTES]);

/* --- names of data files --- */

enum { DATA_NAME_BYTES = 17 };
/* 16 digits. Returns `out`. */
char *data_name(uint64_t file, char out[DATA_NAME_BYTES]);
/* False: no data file's name. */
bool data_name_parse(const char *name, uint64_t *file);

/* --- headers --- */

#define DISK_HEADER_NAME "user.mobula.object"
enum { DISK_HEADER_BYTES = 104, DISK_DIGEST_BYTES = 16 };

struct disk_header {
    struct mob_id id;
    uint64_t file, size, mtime_ns;
    uint32_t mode, uid, gid; /* permission bits only */
    bool sealed;             /* digest is there */
    bool encrypted;          /* the file; `size` is that of its content */
    uint8_t digest[DISK_DIGEST_BYTES];
};

/* How long the file must be. */
uint64_t disk_header_file_bytes(const struct disk_header *header);
/* The checksum of one block, with its head if it has one, as the engine of spill_io.h makes it. */
void spill_sum_block(const void *data, size_t bytes, struct spill_sum *out);
/* Seals the header with the checksums of all blocks. */
void disk_header_seal(struct disk_header *header, const struct spill_sum *sums);
void disk_header_encode(const struct disk_header *header, uint8_t out[DISK_HEADER_BYTES]);
/* -EBADMSG: it is torn, or nothing of the kind; -EPROTO: of another version. */
MOB_MUST_CHECK errint_t disk_header_decode(const void *bytes, size_t count,
                                           struct disk_header *out);

/* The header of an open file. As disk_header_decode(); -ENODATA: it has none; -EOPNOTSUPP: nor can
 * it have one, on this filesystem; -errno. */
MOB_MUST_CHECK errint_t disk_header_read(int fd, struct disk_header *out);
/* Gives an open file (`fd` may be read-only) its header, unless it has the same already: so its
 * ctime stays, or changes once. -EOPNOTSUPP, -ENOSPC, -EROFS, or what else the filesystem says;
 * then it has none, if that can be helped. Nothing is made durable. */
MOB_MUST_CHECK errint_t disk_header_write(int fd, const struct disk_header *header);

/* Reads all of a file and compares it with its header, which must be sealed; that needs no key.
 * With O_DIRECT in
 * `fd`'s flags it goes past the page cache; that is turned off should it not do. Blocks for as long
 * as the disk takes. 0; -EBADMSG: its bytes are others; -ENODATA: it is shorter or longer; -EIO or
 * what else a read says; -ENOMEM. *read_bytes: how much was read. */
MOB_MUST_CHECK errint_t disk_header_verify(int fd, const struct disk_header *header,
                                           uint64_t *read_bytes);

#endif
