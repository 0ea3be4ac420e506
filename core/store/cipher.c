/* Encryption. See cipher.h. */
#include "core/store/cipher.h"

#include <fcntl.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>
#include <string.h>
#include <sys/stat.h>

#include "core/base/log.h"
#include "core/base/util.h"

enum {
    VERSION = 1,
    KEY_BYTES = 32,
    WRAPPED_BYTES = 40,
    TAG_BYTES = 16,
    NONCE_BYTES = 12,
    CHUNKS = CIPHER_BLOCK_BYTES / CIPHER_CHUNK_BYTES,
};
static const char magic[8] = "mobulaeb";

struct head {
    char magic[8];
    uint32_t version, bytes;
    uint64_t file, block;
    uint8_t wrapped[WRAPPED_BYTES];
    uint8_t tags[CHUNKS][TAG_BYTES];
};
_Static_assert(sizeof(struct head) == 328, "no padding goes to disk");
_Static_assert(WRAPPED_BYTES + TAG_BYTES == CIPHER_VALUE_BYTES, "a value is key, tag, and bytes");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "heads are little-endian");

struct cipher_key {
    uint8_t bytes[KEY_BYTES];
    EVP_CIPHER *gcm, *wrap;
    char name[CIPHER_NAME_BYTES];
};

/* What is authenticated with a chunk, beside its bytes. */
struct context {
    uint32_t kind, chunk;
    uint64_t number, block, bytes;
};
_Static_assert(sizeof(struct context) == 32, "no padding is authenticated");

enum { KIND_BLOCK = UINT32_C(0x6b6c62) }; /* no table of the database has it */

/* --- the key --- */

static int digit_value(char digit)
{
    return digit >= '0' && digit <= '9'   ? digit - '0'
           : digit >= 'a' && digit <= 'f' ? digit - 'a' + 10
           : digit >= 'A' && digit <= 'F' ? digit - 'A' + 10
                                          : -1;
}

static bool is_line(const char *text, size_t bytes)
{
    size_t printable = 0;
    while (printable < bytes && text[printable] >= ' ' && text[printable] <= '~')
        printable++;
    return printable == bytes || (printable == bytes - 1 && text[printable] == '\n');
}

static bool parse_key(const char *text, size_t bytes, uint8_t out[KEY_BYTES])
{
    /* A line of text of that length was not meant as bytes: it would be a weak key. */
    if (bytes == KEY_BYTES && !is_line(text, bytes)) {
        memcpy(out, text, KEY_BYTES);
        return true;
    }
    if (bytes && text[bytes - 1] == '\n')
        bytes--;
    if (bytes != 2 * KEY_BYTES)
        return false;
    for (size_t i = 0; i < KEY_BYTES; i++) {
        int high = digit_value(text[2 * i]), low = digit_value(text[2 * i + 1]);
        if (high < 0 || low < 0)
            return false;
        out[i] = (uint8_t)(high << 4 | low);
    }
    return true;
}

static bool name_key(struct cipher_key *key)
{
    static const char about[] = "mobula: the name of a spill key";
    static const char digits[] = "0123456789abcdef";
    uint8_t sum[EVP_MAX_MD_SIZE];
    unsigned bytes = 0;
    if (!HMAC(EVP_sha256(), key->bytes, KEY_BYTES, (const uint8_t *)about, sizeof about - 1, sum,
              &bytes) ||
        bytes < CIPHER_NAME_BYTES / 2)
        return false;
    for (size_t i = 0; i < CIPHER_NAME_BYTES / 2; i++) {
        key->name[2 * i] = digits[sum[i] >> 4];
        key->name[2 * i + 1] = digits[sum[i] & 15];
    }
    return true;
}

/* The file, of at most `size` bytes; more is an error, too. */
static ssize_t read_key_file(const char *path, char *buffer, size_t size, struct mob_error *err)
{
    struct stat info;
    /* A FIFO that nobody writes to is empty: who starts would wait for ever. */
    cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &info) < 0)
        return mob_error_set(err, -errno, "the spill key %s: %s", path, strerror(errno));
    if (S_ISREG(info.st_mode) && info.st_mode & 0004)
        mob_log_warning("store: the spill key %s can be read by everybody: chmod 600 %s", path,
                        path);
    ssize_t got = read(fd, buffer, size);
    if (got < 0)
        return mob_error_set(err, -errno, "the spill key %s: %s", path, strerror(errno));
    return got;
}

errint_t cipher_key_load(const char *path, struct cipher_key **out, struct mob_error *err)
{
    char text[2 * KEY_BYTES + 2];
    ssize_t got = read_key_file(path, text, sizeof text, err);
    if (got < 0)
        return (errint_t)got;
    struct cipher_key *key = calloc(1, sizeof *key);
    errint_t error = !key ? -ENOMEM : parse_key(text, (size_t)got, key->bytes) ? 0 : -EINVAL;
    OPENSSL_cleanse(text, sizeof text);
    if (!error) {
        key->gcm = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
        key->wrap = EVP_CIPHER_fetch(NULL, "AES-256-WRAP", NULL);
        if (!key->gcm || !key->wrap || !name_key(key))
            error = -ENOTSUP;
    }
    if (!error) {
        *out = key;
        return 0;
    }
    cipher_key_free(key);
    if (error == -EINVAL)
        return mob_error_set(err, error,
                             "the spill key %s: expected 32 bytes, or 64 hexadecimal digits, as "
                             "\"openssl rand -hex 32\" prints them",
                             path);
    return mob_error_set(err, error, "the spill key %s: %s", path,
                         error == -ENOMEM ? "no memory" : "OpenSSL has no AES-256 here");
}

void cipher_key_free(struct cipher_key *key)
{
    if (!key)
        return;
    EVP_CIPHER_free(key->gcm);
    EVP_CIPHER_free(key->wrap);
    OPENSSL_cleanse(key, sizeof *key);
    free(key);
}

const char *cipher_key_name(const struct cipher_key *key)
{
    return key->name;
}

/* --- data keys --- */

static void free_context(EVP_CIPHER_CTX **context)
{
    EVP_CIPHER_CTX_free(*context);
}
#define cleanup_context MOB_CLEANUP(free_context)

static errint_t wrap(const struct cipher_key *key, bool wraps, const uint8_t *in, size_t bytes,
                     uint8_t *out, size_t out_bytes)
{
    int done = 0, last = 0;
    cleanup_context EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
    if (!context)
        return -ENOMEM;
    EVP_CIPHER_CTX_set_flags(context, EVP_CIPHER_CTX_FLAG_WRAP_ALLOW);
    uint8_t result[WRAPPED_BYTES + 16];
    bool ok = EVP_CipherInit_ex2(context, key->wrap, key->bytes, NULL, wraps, NULL) &&
              EVP_CipherUpdate(context, result, &done, in, (int)bytes) > 0 &&
              EVP_CipherFinal_ex(context, result + done, &last) > 0 &&
              (size_t)(done + last) == out_bytes;
    if (ok)
        memcpy(out, result, out_bytes);
    OPENSSL_cleanse(result, sizeof result);
    return ok ? 0 : -EBADMSG;
}

/* A cipher with a new data key, and that wrapped. NULL: *error says why. */
static EVP_CIPHER_CTX *begin_encrypting(const struct cipher_key *key,
                                        uint8_t wrapped[WRAPPED_BYTES], errint_t *error)
{
    uint8_t data_key[KEY_BYTES];
    EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
    *error = context ? 0 : -ENOMEM;
    if (!*error && RAND_priv_bytes(data_key, sizeof data_key) != 1)
        *error = -EIO;
    if (!*error && wrap(key, true, data_key, KEY_BYTES, wrapped, WRAPPED_BYTES))
        *error = -ENOMEM;
    if (!*error && !EVP_EncryptInit_ex2(context, key->gcm, data_key, NULL, NULL))
        *error = -ENOMEM;
    OPENSSL_cleanse(data_key, sizeof data_key);
    if (!*error)
        return context;
    EVP_CIPHER_CTX_free(context);
    return NULL;
}

/* A cipher for what was encrypted with that data key. */
static EVP_CIPHER_CTX *begin_decrypting(const struct cipher_key *key,
                                        const uint8_t wrapped[WRAPPED_BYTES], errint_t *error)
{
    uint8_t data_key[KEY_BYTES];
    EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
    *error = context ? wrap(key, false, wrapped, WRAPPED_BYTES, data_key, KEY_BYTES) : -ENOMEM;
    if (!*error && !EVP_DecryptInit_ex2(context, key->gcm, data_key, NULL, NULL))
        *error = -ENOMEM;
    OPENSSL_cleanse(data_key, sizeof data_key);
    if (!*error)
        return context;
    EVP_CIPHER_CTX_free(context);
    return NULL;
}

static void make_nonce(uint32_t chunk, uint8_t nonce[NONCE_BYTES])
{
    memset(nonce, 0, NONCE_BYTES);
    memcpy(nonce, &chunk, sizeof chunk);
}

/* `out` may be `in`. */
static errint_t encrypt_chunk(EVP_CIPHER_CTX *cipher, const struct context *context, const void *in,
                              void *out, size_t bytes, uint8_t tag[TAG_BYTES])
{
    uint8_t nonce[NONCE_BYTES];
    int done;
    make_nonce(context->chunk, nonce);
    if (!EVP_EncryptInit_ex2(cipher, NULL, NULL, nonce, NULL) ||
        !EVP_EncryptUpdate(cipher, NULL, &done, (const void *)context, sizeof *context) ||
        (bytes && !EVP_EncryptUpdate(cipher, out, &done, in, (int)bytes)) ||
        !EVP_EncryptFinal_ex(cipher, nonce, &done) ||
        !EVP_CIPHER_CTX_ctrl(cipher, EVP_CTRL_AEAD_GET_TAG, TAG_BYTES, tag))
        return -ENOMEM;
    return 0;
}

static errint_t decrypt_chunk(EVP_CIPHER_CTX *cipher, const struct context *context, const void *in,
                              void *out, size_t bytes, const uint8_t tag[TAG_BYTES])
{
    uint8_t nonce[NONCE_BYTES], is[TAG_BYTES];
    int done;
    make_nonce(context->chunk, nonce);
    memcpy(is, tag, TAG_BYTES);
    if (!EVP_DecryptInit_ex2(cipher, NULL, NULL, nonce, NULL) ||
        !EVP_DecryptUpdate(cipher, NULL, &done, (const void *)context, sizeof *context) ||
        (bytes && !EVP_DecryptUpdate(cipher, out, &done, in, (int)bytes)) ||
        !EVP_CIPHER_CTX_ctrl(cipher, EVP_CTRL_AEAD_SET_TAG, TAG_BYTES, is))
        return -ENOMEM;
    return EVP_DecryptFinal_ex(cipher, nonce, &done) > 0 ? 0 : -EBADMSG;
}

/* --- blocks --- */

static size_t chunk_bytes(size_t bytes, size_t chunk)
{
    size_t left = bytes - chunk * CIPHER_CHUNK_BYTES;
    return left < CIPHER_CHUNK_BYTES ? left : CIPHER_CHUNK_BYTES;
}

static struct context block_context(uint64_t file, uint64_t block, size_t bytes, size_t chunk)
{
    return (struct context){.kind = KIND_BLOCK,
                            .chunk = (uint32_t)chunk,
                            .number = file,
                            .block = block,
                            .bytes = bytes};
}

errint_t cipher_encrypt_block(const struct cipher_key *key, uint64_t file, uint64_t block,
                              void *buffer, size_t bytes)
{
    struct head head = {.version = VERSION, .bytes = (uint32_t)bytes, .file = file, .block = block};
    uint8_t *content = (uint8_t *)buffer + CIPHER_HEAD_BYTES;
    errint_t error;
    cleanup_context EVP_CIPHER_CTX *cipher = begin_encrypting(key, head.wrapped, &error);
    for (size_t i = 0; !error && i * CIPHER_CHUNK_BYTES < bytes; i++) {
        struct context context = block_context(file, block, bytes, i);
        uint8_t *chunk = content + i * CIPHER_CHUNK_BYTES;
        error = encrypt_chunk(cipher, &context, chunk, chunk, chunk_bytes(bytes, i), head.tags[i]);
    }
    if (error)
        return error;
    memcpy(head.magic, magic, sizeof magic);
    memset(buffer, 0, CIPHER_HEAD_BYTES);
    memcpy(buffer, &head, sizeof head);
    return 0;
}

errint_t cipher_head_bytes(const void *head, uint64_t file, uint64_t block, size_t *bytes)
{
    struct head is;
    *bytes = 0;
    memcpy(&is, head, sizeof is);
    if (memcmp(is.magic, magic, sizeof magic) || is.version != VERSION || is.file != file ||
        is.block != block || !is.bytes || is.bytes > CIPHER_BLOCK_BYTES)
        return -EBADMSG;
    *bytes = is.bytes;
    return 0;
}

/* -EBADMSG: it is the head of another block, or of another length. */
static errint_t check_head(const void *head, uint64_t file, uint64_t block, size_t bytes)
{
    size_t is;
    errint_t error = cipher_head_bytes(head, file, block, &is);
    return error || is != bytes ? -EBADMSG : 0;
}

errint_t cipher_decrypt_block(const struct cipher_key *key, uint64_t file, uint64_t block,
                              void *buffer, size_t bytes)
{
    struct head head;
    uint8_t *content = (uint8_t *)buffer + CIPHER_HEAD_BYTES;
    errint_t error = check_head(buffer, file, block, bytes);
    if (error)
        return error;
    memcpy(&head, buffer, sizeof head);
    cleanup_context EVP_CIPHER_CTX *cipher = begin_decrypting(key, head.wrapped, &error);
    for (size_t i = 0; !error && i * CIPHER_CHUNK_BYTES < bytes; i++) {
        struct context context = block_context(file, block, bytes, i);
        uint8_t *chunk = content + i * CIPHER_CHUNK_BYTES;
        error = decrypt_chunk(cipher, &context, chunk, chunk, chunk_bytes(bytes, i), head.tags[i]);
    }
    return error;
}

/* --- reading --- */

static errint_t read_all(const struct cipher_file *file, void *buffer, size_t bytes,
                         uint64_t offset)
{
    ssize_t got = file->now ? mob_pread_now(file->fd, buffer, bytes, (off_t)offset)
                            : mob_pread_full(file->fd, buffer, bytes, (off_t)offset);
    return got < 0 ? (errint_t)got : (size_t)got < bytes ? -ENODATA : 0;
}

/* Whether the head and the chunks that these bytes are in are in the page cache. */
static bool is_cached(const struct cipher_file *file, const struct cipher_block *block,
                      size_t begin, size_t end)
{
    size_t first = begin / CIPHER_CHUNK_BYTES * CIPHER_CHUNK_BYTES;
    size_t last = (end - 1) / CIPHER_CHUNK_BYTES;
    size_t until = last * CIPHER_CHUNK_BYTES + chunk_bytes(block->bytes, last);
    return mob_is_cached(file->fd, block->place, sizeof(struct head)) &&
           mob_is_cached(file->fd, block->place + CIPHER_HEAD_BYTES + first, until - first);
}

errint_t cipher_read_block(const struct cipher_key *key, const struct cipher_file *file,
                           const struct cipher_block *block, size_t begin, size_t end, void *out)
{
    struct head head;
    if (file->now && !is_cached(file, block, begin, end))
        return -EAGAIN;
    errint_t error = read_all(file, &head, sizeof head, block->place);
    if (!error)
        error = check_head(&head, file->number, block->number, block->bytes);
    if (error)
        return error;
    cleanup_free uint8_t *chunk = malloc(CIPHER_CHUNK_BYTES);
    if (!chunk)
        return -ENOMEM;
    uint8_t *to = out;
    cleanup_context EVP_CIPHER_CTX *cipher = begin_decrypting(key, head.wrapped, &error);
    for (size_t i = begin / CIPHER_CHUNK_BYTES; !error && i * CIPHER_CHUNK_BYTES < end; i++) {
        size_t at = i * CIPHER_CHUNK_BYTES, part = chunk_bytes(block->bytes, i);
        size_t from = begin > at ? begin - at : 0, until = end - at < part ? end - at : part;
        struct context context = block_context(file->number, block->number, block->bytes, i);
        uint8_t *place = until - from == part ? to : chunk;
        error = read_all(file, place, part, block->place + CIPHER_HEAD_BYTES + at);
        if (!error)
            error = decrypt_chunk(cipher, &context, place, place, part, head.tags[i]);
        if (!error && place == chunk)
            memcpy(to, chunk + from, until - from);
        to += until - from;
    }
    OPENSSL_cleanse(chunk, CIPHER_CHUNK_BYTES);
    return error;
}

ssize_t cipher_pread(const struct cipher_key *key, const struct cipher_file *file, void *buffer,
                     size_t bytes, uint64_t offset, uint64_t *bad_block)
{
    uint64_t size = file->size;
    size_t done = 0;
    if (offset >= size)
        return 0;
    if (bytes > size - offset)
        bytes = (size_t)(size - offset);
    while (done < bytes) {
        uint64_t at = offset + done, block = at / CIPHER_BLOCK_BYTES;
        uint64_t begins = block * CIPHER_BLOCK_BYTES;
        size_t holds =
            size - begins < CIPHER_BLOCK_BYTES ? (size_t)(size - begins) : CIPHER_BLOCK_BYTES;
        size_t begin = (size_t)(at - begins), end = begin + (bytes - done);
        if (end > holds)
            end = holds;
        struct cipher_block it = {block, cipher_block_offset(block), holds};
        errint_t error = cipher_read_block(key, file, &it, begin, end, (uint8_t *)buffer + done);
        if (error) {
            OPENSSL_cleanse(buffer, bytes);
            if (bad_block)
                *bad_block = block;
            return error;
        }
        done += end - begin;
    }
    return (ssize_t)done;
}

/* --- values --- */

errint_t cipher_encrypt_value(const struct cipher_key *key, uint32_t kind, uint64_t number,
                              const void *value, size_t bytes, void *out)
{
    uint8_t *wrapped = out, *tag = wrapped + WRAPPED_BYTES, *content = tag + TAG_BYTES;
    struct context context = {.kind = kind, .number = number, .bytes = bytes};
    errint_t error;
    if (bytes > INT32_MAX)
        return -EINVAL;
    cleanup_context EVP_CIPHER_CTX *cipher = begin_encrypting(key, wrapped, &error);
    return error ? error : encrypt_chunk(cipher, &context, value, content, bytes, tag);
}

errint_t cipher_decrypt_value(const struct cipher_key *key, uint32_t kind, uint64_t number,
                              const void *encrypted, size_t bytes, void *out)
{
    const uint8_t *wrapped = encrypted, *tag = wrapped + WRAPPED_BYTES, *content = tag + TAG_BYTES;
    errint_t error;
    if (bytes < CIPHER_VALUE_BYTES || bytes - CIPHER_VALUE_BYTES > INT32_MAX)
        return -EBADMSG;
    struct context context = {.kind = kind, .number = number, .bytes = bytes - CIPHER_VALUE_BYTES};
    cleanup_context EVP_CIPHER_CTX *cipher = begin_decrypting(key, wrapped, &error);
    if (!error)
        error = decrypt_chunk(cipher, &context, content, out, context.bytes, tag);
    if (error)
        OPENSSL_cleanse(out, context.bytes);
    return error;
}
