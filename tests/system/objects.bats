#!/usr/bin/env bats
# Objects: what is read equals what was written, and nobody changes it (SPEC.md 2).
# shellcheck disable=SC2002,SC2012,SC2016,SC2030,SC2031,SC2314,SC2315

load helper

# The sizes around each edge: page, inline limit (100 KiB), a megabyte.
sizes=(0 1 4095 4096 4097 102399 102400 102401 1048577)

setup_file() {
    start_mount
    bytes 5000 | put small
    bytes 300000 | put large
}

@test "the root of the mount has the directories of the tree and a README" {
    local name
    for name in objects staging run jobs nodes; do
        [[ -d $MNT/$name ]]
    done
    grep -q staging "$MNT/README"
    grep -q '^# EOF' "$MNT/metrics"
}

@test "an ID is 40 hexadecimal digits, beginning with its node's" {
    local id node
    id=$(id_of small)
    matches "$id" '^[0-9a-f]{40}$'
    matches "$id" '00000000$'
    node=$(node_path)
    node=${node##*/}
    equals "${id:0:16}" "${node:0:16}"
}

@test "two objects of the same content have different IDs" {
    echo same | put same-1
    echo same | put same-2
    [[ $(id_of same-1) != "$(id_of same-2)" ]]
}

@test "cat by name and by ID gives what was written, at every size around an edge" {
    local size
    for size in "${sizes[@]}"; do
        bytes "$size" 17 >"$BATS_TEST_TMPDIR/source"
        put "edge-$size" <"$BATS_TEST_TMPDIR/source"
        equals "$(stat -Lc %s "$MNT/staging/edge-$size")" "$size" "size"
        equals "$(cat "$MNT/staging/edge-$size" | sha256sum)" "$(sha256sum <"$BATS_TEST_TMPDIR/source")" "$size by name"
        equals "$(cat "$MNT/objects/$(id_of "edge-$size")" | sha256sum)" \
            "$(sha256sum <"$BATS_TEST_TMPDIR/source")" "$size by ID"
    done
}

@test "cp in and cp out gives the same bytes, at every size around an edge" {
    local size
    for size in "${sizes[@]}"; do
        bytes "$size" 4711 >"$BATS_TEST_TMPDIR/source"
        cp "$BATS_TEST_TMPDIR/source" "$MNT/staging/cp-$size"
        cp -f "$MNT/staging/cp-$size" "$BATS_TEST_TMPDIR/copy"
        same "$BATS_TEST_TMPDIR/source" "$BATS_TEST_TMPDIR/copy"
    done
}

@test "read, mmap, pread, readv, sendfile, splice and copy_file_range agree, inline and large" {
    local way name
    for name in small large; do
        cat "$MNT/staging/$name" >"$BATS_TEST_TMPDIR/$name"
        for way in read mmap pread readv sendfile splice copy_file_range; do
            within 10 readways "$way" "$MNT/staging/$name" "$BATS_TEST_TMPDIR/copy"
            same "$BATS_TEST_TMPDIR/$name" "$BATS_TEST_TMPDIR/copy"
        done
    done
}

@test "dd reads any range, and nothing past the end" {
    bytes 300000 >"$BATS_TEST_TMPDIR/source"
    local skip
    for skip in 0 1 4095 102399 299999 300000 400000; do
        equals "$(dd if="$MNT/staging/large" bs=1 skip="$skip" count=777 status=none iflag=fullblock | sha256sum)" \
            "$(dd if="$BATS_TEST_TMPDIR/source" bs=1 skip="$skip" count=777 status=none 2>/dev/null | sha256sum)" "from $skip"
    done
    equals "$(dd if="$MNT/staging/large" bs=64k iflag=direct status=none | sha256sum)" \
        "$(sha256sum <"$BATS_TEST_TMPDIR/source")" "direct"
    equals "$(dd if="$MNT/staging/small" bs=64k iflag=direct status=none | sha256sum)" \
        "$(bytes 5000 | sha256sum)" "small, direct"
}

@test "eight readers at once all get the same bytes" {
    local id expected reader
    id=$(id_of large)
    expected=$(digest "$MNT/staging/large")
    for reader in 1 2 3 4 5 6 7 8; do
        background bash -c 'sha256sum <"$1" >"$2"' - "$MNT/objects/$id" "$BATS_TEST_TMPDIR/reader-$reader"
    done
    await
    equals "$(cat "$BATS_TEST_TMPDIR"/reader-* | sort -u)" "$expected  -"
}

@test "up to 100 KiB an object is inline, one byte more and it is in memory" {
    bytes 102400 | put tier-inline
    bytes 102401 | put tier-memory
    equals "$(attribute tier "$MNT/objects/$(id_of tier-inline)")" inline
    equals "$(attribute tier "$MNT/objects/$(id_of tier-memory)")" memory
}

# Every way to change an object, refused, as whoever runs this with WRAPPER.
refuse_changes() { # OBJECT-PATH
    local path=$1 other=$MNT/staging/refuse-source
    refused 'EPERM|EROFS|EACCES' open-write "$path"
    refused 'EPERM|EROFS|EACCES' open-rdwr "$path"
    refused 'EPERM|EROFS|EACCES' open-truncate "$path"
    refused 'EPERM|EROFS|EACCES' open-append "$path"
    refused 'EPERM|EROFS|EACCES' reopen-write "$path"
    refused 'EPERM|EROFS|EACCES' truncate "$path" 0
    refused 'EPERM|EROFS|EACCES' truncate "$path" 10000000
    refused 'EPERM|EROFS' chmod "$path" 666
    refused 'EPERM|EROFS' chmod-open "$path" 666
    refused 'EPERM|EROFS' chown "$path" 1
    refused 'EPERM|EROFS|EACCES' setxattr "$path" user.note=x
    refused 'EPERM|EROFS|EACCES' setxattr "$path" user.mobula.refs=
    refused 'EPERM|EROFS|EACCES|ENODATA' removexattr "$path" user.note
    refused 'EPERM|EROFS' utimes "$path"
    refused 'EPERM|EROFS|EACCES' touch "$path"
    refused 'EACCES' map-write "$path"
    refused 'EACCES' map-protect "$path"
    refused 'EPERM|EROFS|EACCES' fallocate "$path" 10000000
    refused 'EBADF' fallocate-open "$path" 10000000
    refused 'EPERM|EROFS|EACCES|EXDEV' rename "$other" "$path"
    refused 'EPERM|EROFS|EACCES|EXDEV' rename-exchange "$other" "$path"
}

@test "every attempt to change an object is refused" {
    local name id before
    echo other | put refuse-source
    for name in small large; do
        id=$(id_of "$name")
        before=$(stat -c '%s %a %u %g %Y' "$MNT/objects/$id")$(digest "$MNT/objects/$id")
        refuse_changes "$MNT/objects/$id"
        equals "$(stat -c '%s %a %u %g %Y' "$MNT/objects/$id")$(digest "$MNT/objects/$id")" "$before"
    done
    equals "$(cat "$MNT/staging/refuse-source")" other
}

@test "every attempt to change an object is refused through its name in staging, too" {
    local before
    before=$(digest "$MNT/staging/small")
    refused 'EPERM|EROFS|EACCES' open-write "$MNT/staging/small"
    refused 'EPERM|EROFS|EACCES' open-truncate "$MNT/staging/small"
    refused 'EPERM|EROFS|EACCES' open-create "$MNT/staging/small"
    refused EEXIST open-exclusive "$MNT/staging/small"
    refused 'EPERM|EROFS|EACCES' truncate "$MNT/staging/small" 0
    refused 'EPERM|EROFS' chmod "$MNT/staging/small" 777
    run bash -c 'echo x >"$1"' - "$MNT/staging/small"
    [[ $status -ne 0 ]]
    run bash -c 'echo x >>"$1"' - "$MNT/staging/small"
    [[ $status -ne 0 ]]
    run dd if=/dev/zero of="$MNT/staging/small" bs=10 count=1 conv=notrunc
    [[ $status -ne 0 ]]
    equals "$(digest "$MNT/staging/small")" "$before"
}

@test "another user may read an object and change nothing" {
    local id
    id=$(id_of large)
    if is_root; then
        equals "$(as_nobody sha256sum "$MNT/objects/$id" | cut -d' ' -f1)" "$(digest "$MNT/objects/$id")"
        equals "$(as_nobody attempt open-write "$MNT/objects/$id")" EACCES
        matches "$(as_nobody attempt truncate "$MNT/objects/$id" 0)" '^(EACCES|EPERM)$'
        matches "$(as_nobody attempt chmod "$MNT/objects/$id" 666)" '^EPERM$'
        matches "$(as_nobody attempt unlink "$MNT/objects/$id")" '^(EACCES|EPERM)$'
        matches "$(as_nobody attempt chown "$MNT/objects/$id" 65534)" '^EPERM$'
    else
        # A user's mount shows itself to that user alone, who owns all of it.
        equals "$(stat -c %u "$MNT/objects/$id")" "$EUID"
        [[ -r $MNT/objects/$id && ! -w $MNT/objects/$id ]]
    fi
}

@test "objects/ takes no file, no directory, no link, and gives none up" {
    local id
    id=$(id_of small)
    refused 'EPERM|EROFS|EACCES' unlink "$MNT/objects/$id"
    refused 'EPERM|EROFS|EACCES|EXDEV' rename "$MNT/objects/$id" "$MNT/staging/taken"
    refused 'EPERM|EROFS|EACCES' rename "$MNT/objects/$id" "$MNT/objects/${id%0}1"
    refused 'EPERM|EROFS|EACCES' open-exclusive "$MNT/objects/new"
    refused 'EPERM|EROFS|EACCES' open-exclusive "$MNT/objects/0123456789012345678901234567890123456789"
    refused 'EPERM|EROFS|EACCES' mkdir "$MNT/objects/new"
    refused 'EPERM|EROFS|EACCES' symlink "$MNT/objects/new" target
    refused 'EPERM|EROFS|EACCES' mkfifo "$MNT/objects/new"
    refused 'EPERM|EROFS|EACCES|EXDEV' link "$MNT/objects/$id" "$MNT/objects/new"
    refused 'EPERM|EROFS|EACCES' rmdir "$MNT/objects"
    refused 'EPERM|EROFS|EACCES|EBUSY' rename "$MNT/objects" "$MNT/renamed"
    run rm -rf "$MNT/objects/$id"
    [[ $status -ne 0 ]]
    exists "$MNT/objects/$id"
}

@test "a hard link of an object to anywhere outside staging is refused" {
    local id
    id=$(id_of small)
    refused EXDEV link "$MNT/objects/$id" "$BATS_TEST_TMPDIR/outside"
    refused 'EPERM|EROFS|EACCES|EXDEV' link "$MNT/objects/$id" "$MNT/outside"
    refused 'EPERM|EROFS|EACCES|EXDEV' link "$MNT/objects/$id" "$MNT/jobs/outside"
}

@test "nothing can be made in the root, in jobs/ or in nodes/" {
    local directory
    for directory in "$MNT" "$MNT/jobs" "$MNT/nodes"; do
        refused 'EPERM|EROFS|EACCES' open-exclusive "$directory/new"
        refused 'EPERM|EROFS|EACCES' mkdir "$directory/new"
    done
    refused 'EPERM|EROFS|EACCES' unlink "$MNT/README"
    refused 'EPERM|EROFS|EACCES' open-write "$MNT/README"
    refused 'EPERM|EROFS|EACCES|EBUSY' rmdir "$MNT/staging"
}

@test "the mode is 0444 less the umask, 0555 if the staged file was executable" {
    (
        umask 022
        echo x | put mode-022
        umask 027
        echo x | put mode-027
        umask 077
        echo x | put mode-077
    )
    equals "$(stat -Lc %a "$MNT/staging/mode-022")" 444
    equals "$(stat -Lc %a "$MNT/staging/mode-027")" 440
    equals "$(stat -Lc %a "$MNT/staging/mode-077")" 400
    printf '#!/bin/sh\necho "ran with $1"\n' >"$BATS_TEST_TMPDIR/script"
    chmod 755 "$BATS_TEST_TMPDIR/script"
    (
        umask 022
        cp "$BATS_TEST_TMPDIR/script" "$MNT/staging/mode-script"
        umask 077
        cp "$BATS_TEST_TMPDIR/script" "$MNT/staging/mode-private"
    )
    equals "$(stat -Lc %a "$MNT/staging/mode-script")" 555
    equals "$(stat -Lc %a "$MNT/staging/mode-private")" 500
    equals "$("$MNT/staging/mode-script" this)" "ran with this"
    equals "$("$MNT/objects/$(id_of mode-script)" that)" "ran with that"
}

@test "a binary that is an object runs" {
    cp /bin/echo "$MNT/staging/binary"
    equals "$("$MNT/staging/binary" hello)" hello
}

@test "an object belongs to who wrote it" {
    equals "$(stat -Lc '%u %g' "$MNT/staging/small")" "$(id -u) $(id -g)"
    if is_root; then
        chmod 1777 "$MNT/staging" 2>/dev/null || true
        as_nobody bash -c 'echo mine >"$1"' - "$MNT/staging/nobody-file"
        equals "$(stat -Lc '%u %g' "$MNT/staging/nobody-file")" "65534 65534"
        (
            umask 077
            echo secret | put root-only
        )
        equals "$(as_nobody attempt open-read "$MNT/objects/$(id_of root-only)")" EACCES
    fi
}

@test "the modification time is the time of the commit" {
    local before after committed
    before=$(date +%s)
    echo x | put mtime
    after=$(date +%s)
    committed=$(stat -Lc %Y "$MNT/staging/mtime")
    ((before <= committed && committed <= after))
    equals "$(stat -Lc %Y "$MNT/staging/mtime")" "$committed"
}

@test "readdir lists three thousand objects, each once" {
    bash -c '
        mkdir "$1/staging/many" && cd "$1/staging/many" || exit 1
        for ((i = 0; i < 3000; i++)); do echo "$i" >"$i" || exit 1; done' - "$MNT"
    find "$MNT/staging/many" -type l -printf '%l\n' | sed 's,.*/,,' | sort >"$BATS_TEST_TMPDIR/expected"
    equals "$(wc -l <"$BATS_TEST_TMPDIR/expected")" 3000
    ls -f "$MNT/objects" | sort >"$BATS_TEST_TMPDIR/listed"
    equals "$(uniq -d "$BATS_TEST_TMPDIR/listed")" ""
    equals "$(comm -23 "$BATS_TEST_TMPDIR/expected" "$BATS_TEST_TMPDIR/listed")" ""
    equals "$(find "$MNT/objects" -type f | wc -l)" "$(object_count)"
    equals "$(ls "$MNT/staging/many" | sort -n | md5sum)" "$(seq 0 2999 | md5sum)"
    rm -r "$MNT/staging/many"
    wait_until '[[ $(ls "$MNT/objects" | sort | comm -12 "$BATS_TEST_TMPDIR/expected" - | wc -l) -eq 0 ]]'
}

@test "a listing of objects goes on while objects come and go, and shows none of the others twice" {
    bash -c 'mkdir "$1/staging/steady" && cd "$1/staging/steady" && for ((i = 0; i < 500; i++)); do echo "$i" >"$i"; done' - "$MNT"
    background bash -c 'while echo x >"$1/staging/flicker" && rm "$1/staging/flicker"; do :; done' - "$MNT"
    find "$MNT/staging/steady" -type l -printf '%l\n' | sed 's,.*/,,' | sort >"$BATS_TEST_TMPDIR/expected"
    local round
    for round in 1 2 3 4 5; do
        ls -f "$MNT/objects" | sort >"$BATS_TEST_TMPDIR/listed"
        equals "$(uniq -d "$BATS_TEST_TMPDIR/listed")" "" "twice in round $round"
        equals "$(comm -23 "$BATS_TEST_TMPDIR/expected" "$BATS_TEST_TMPDIR/listed")" "" "missing in round $round"
    done
}

@test "find and grep -r work in the mount" {
    echo "a needle in an object" | put needle
    equals "$(find "$MNT/objects" -name "$(id_of needle)" -size -2 | wc -l)" 1
    equals "$(within 20 grep -rl "a needle in an object" "$MNT/objects")" "$MNT/objects/$(id_of needle)"
}

@test "an unknown ID and a malformed one give ENOENT" {
    local id unknown
    id=$(id_of small)
    unknown=${id:0:16}ffffffffffffffff00000000
    refused ENOENT open-read "$MNT/objects/$unknown"
    refused ENOENT stat "$MNT/objects/$unknown"
    refused ENOENT stat "$MNT/objects/${id^^}x"
    refused ENOENT stat "$MNT/objects/${id:1}"
    refused ENOENT stat "$MNT/objects/${id}0"
    refused ENOENT stat "$MNT/objects/${id:0:39}g"
    refused ENOENT stat "$MNT/objects/${id:0:32}00000001"
    refused ENOENT stat "$MNT/objects/ $id"
    refused ENOENT stat "$MNT/objects/x"
    refused ENOENT stat "$MNT/jobs/$id"
    refused ENOENT stat "$MNT/nothing"
    if [[ ${id^^} != "$id" ]]; then
        refused ENOENT stat "$MNT/objects/${id^^}"
    fi
    refused 'ENOTDIR|EACCES' stat "$MNT/objects/$id/x"
}

@test "an object says its state, tier, owner, nodes and SHA-256 in extended attributes" {
    local id node
    id=$(id_of large)
    node=$(node_path)
    equals "$(attribute state "$MNT/objects/$id")" ready
    equals "$(attribute tier "$MNT/objects/$id")" memory
    matches "$(attribute owner "$MNT/objects/$id")" "${id:0:16}"
    [[ -n $(attribute nodes "$MNT/objects/$id") ]]
    equals "$(attribute sha256 "$MNT/objects/$id")" "$(digest "$MNT/objects/$id")"
    equals "$(attribute sha256 "$MNT/objects/$(id_of small)")" "$(digest "$MNT/staging/small")"
    getfattr -d -m - "$MNT/objects/$id" >"$BATS_TEST_TMPDIR/all"
    grep -q '^user.mobula.state="ready"' "$BATS_TEST_TMPDIR/all"
    grep -q '^user.mobula.tier=' "$BATS_TEST_TMPDIR/all"
    refused ENODATA getxattr "$MNT/objects/$id" user.nothing
    refused 'ENODATA|EOPNOTSUPP' getxattr "$MNT/objects/$id" security.nothing
    # Through the name in staging as well: it is followed.
    equals "$(getfattr --only-values -n user.mobula.state "$MNT/staging/large" 2>/dev/null)" ready
}

@test "df shows the store's memory, less by what is put and more by what is removed" {
    local total before after
    # What is free is also what others leave free on the disk: what is used is ours alone.
    read -r total before < <(df -B1 --output=size,used "$MNT" | tail -n 1)
    ((total >= 1000000000))
    head -c 16M /dev/zero | tr '\0' x | put df-object
    after=$(df -B1 --output=used "$MNT" | tail -n 1)
    ((after - before >= 16000000 && after - before <= 24000000))
    rm "$MNT/staging/df-object"
    wait_until '(( $(df -B1 --output=used "$MNT" | tail -n 1) < '"$after"' - 15000000 ))'
}

@test "a shared lock on an object is granted" {
    within 5 flock -s "$MNT/staging/small" true
}

@test "an object is not written by root through a descriptor opened before its commit" {
    local id
    exec {writer}>"$MNT/staging/late"
    echo first >&"$writer"
    exec {kept}>&"$writer"
    exec {writer}>&-
    # One copy of the descriptor is still open, so this is no object yet.
    [[ ! -L $MNT/staging/late ]]
    echo second >&"$kept"
    exec {kept}>&-
    id=$(id_of late)
    equals "$(cat "$MNT/objects/$id")" $'first\nsecond'
}
