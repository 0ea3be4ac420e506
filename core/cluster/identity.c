/* Identity: an Ed25519 key in a PEM file, by OpenSSL. */
#include "core/cluster/identity.h"

#include <fcntl.h>
#include <limits.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/sha.h>
#include <string.h>
#include <sys/stat.h>

#include "core/base/util.h"

static void free_key(EVP_PKEY **key)
{
    EVP_PKEY_free(*key);
}
#define cleanup_key MOB_CLEANUP(free_key)

static errint_t make_key(const char *path, struct mob_error *err)
{
    cleanup_key EVP_PKEY *key = EVP_PKEY_Q_keygen(NULL, NULL, "ED25519");
    BIO *memory = BIO_new(BIO_s_secmem());
    errint_t error = -ENOMEM;
    char *pem = NULL;
    if (key && memory && PEM_write_bio_PKCS8PrivateKey(memory, key, NULL, NULL, 0, NULL, NULL)) {
        long bytes = BIO_get_mem_data(memory, &pem);
        error = mob_write_file(AT_FDCWD, path, pem, (size_t)bytes, 0600);
    }
    BIO_free(memory); /* secure memory is wiped */
    if (error)
        mob_error_set(err, error, "can't make the node's key %s: %s", path, strerror(-error));
    return error;
}

static errint_t read_key(const char *path, EVP_PKEY **key, struct mob_error *err)
{
    cleanup_file FILE *file = fopen(path, "re");
    if (!file)
        return mob_error_set(err, -errno, "can't read the node's key %s: %s", path,
                             strerror(errno));
    struct stat st;
    if (fstat(fileno(file), &st) == 0 && (st.st_mode & 077))
        return mob_error_set(err, -EPERM,
                             "%s can be read by others (mode %03o): chmod 600 it, or remove it "
                             "for a new identity",
                             path, st.st_mode & 0777);
    *key = PEM_read_PrivateKey(file, NULL, NULL, NULL);
    if (!*key || EVP_PKEY_get_base_id(*key) != EVP_PKEY_ED25519)
        return mob_error_set(err, -EINVAL, "%s is no Ed25519 private key in PEM form", path);
    return 0;
}

errint_t identity_load(const char *state_dir, uint8_t owner[MOB_ID_OWNER_BYTES],
                       struct mob_error *err)
{
    char path[PATH_MAX];
    if (snprintf(path, sizeof path, "%s/node.key", state_dir) >= (int)sizeof path)
        return mob_error_set(err, -ENAMETOOLONG, "the state directory's path is too long");
    errint_t error = access(path, F_OK) ? make_key(path, err) : 0;
    if (error)
        return error;
    cleanup_key EVP_PKEY *key = NULL;
    error = read_key(path, &key, err);
    if (error)
        return error;
    uint8_t public_key[32], digest[SHA256_DIGEST_LENGTH];
    size_t bytes = sizeof public_key;
    if (!EVP_PKEY_get_raw_public_key(key, public_key, &bytes) || !SHA256(public_key, bytes, digest))
        return mob_error_set(err, -EINVAL, "%s: the public key can't be had", path);
    memcpy(owner, digest, MOB_ID_OWNER_BYTES);
    return 0;
}
