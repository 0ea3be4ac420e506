#!/usr/bin/env bats
# staging/: write a file by any means, and when it is closed its name is a link (SPEC.md 2).
# shellcheck disable=SC2002,SC2012,SC2016,SC2030,SC2031,SC2314,SC2315

load helper

# Each test has a directory of its own, and its name in $here.
setup() {
    here=$MNT/staging/t$BATS_TEST_NUMBER
    mkdir "$here"
}

# is_link PATH: it is a link to an object that can be read.
is_link() {
    matches "$(readlink "$1")" '/objects/[0-9a-f]{40}$'
    [[ -f $1 ]]
}

is_staged() { [[ -f $1 && ! -L $1 ]]; }

# --- the rule ---

@test "a file that is closed becomes a link to ../objects/ID" {
    echo hello >"$MNT/staging/rule"
    matches "$(readlink "$MNT/staging/rule")" '^\.\./objects/[0-9a-f]{40}$'
    equals "$(cat "$MNT/staging/rule")" hello
    equals "$(stat -c %F "$MNT/staging/rule")" "symbolic link"
    rm "$MNT/staging/rule"
}

@test "a link has one more ../ for each directory" {
    mkdir -p "$here/a/b"
    echo 1 >"$here/one"
    echo 2 >"$here/a/two"
    echo 3 >"$here/a/b/three"
    matches "$(readlink "$here/one")" '^\.\./\.\./objects/[0-9a-f]{40}$'
    matches "$(readlink "$here/a/two")" '^\.\./\.\./\.\./objects/[0-9a-f]{40}$'
    matches "$(readlink "$here/a/b/three")" '^\.\./\.\./\.\./\.\./objects/[0-9a-f]{40}$'
    equals "$(cat "$here/one" "$here/a/two" "$here/a/b/three")" $'1\n2\n3'
}

@test "a look-up right after close finds the link, five hundred times" {
    within 30 bash -c '
        cd "$1" || exit 1
        for ((i = 0; i < 500; i++)); do
            echo "content $i" >"file-$i" || exit 1
            [[ -L file-$i ]] || { echo "file-$i is no link yet"; exit 1; }
            [[ $(<"file-$i") == "content $i" ]] || { echo "file-$i reads wrong"; exit 1; }
        done' - "$here"
}

@test "the same, with a look-up while the file is still open, three hundred times" {
    within 30 bash -c '
        cd "$1" || exit 1
        for ((i = 0; i < 300; i++)); do
            exec 5>"file-$i"
            [[ -f file-$i && ! -L file-$i ]] || { echo "file-$i is no file"; exit 1; }
            echo "content $i" >&5
            exec 5>&-
            [[ -L file-$i ]] || { echo "file-$i is no link yet"; exit 1; }
            [[ $(<"file-$i") == "content $i" ]] || { echo "file-$i reads wrong"; exit 1; }
        done' - "$here"
}

@test "readdir right after close shows the link, and before it the file" {
    exec {writer}>"$here/file"
    equals "$(find "$here" -mindepth 1 -printf '%y %f\n')" "f file"
    exec {writer}>&-
    equals "$(find "$here" -mindepth 1 -printf '%y %f\n')" "l file"
    matches "$(ls -l "$here")" $'\nl[^\n]* file -> '
}

@test "touch makes an empty object" {
    touch "$here/empty"
    is_link "$here/empty"
    equals "$(stat -Lc %s "$here/empty")" 0
    equals "$(cat "$here/empty")" ""
}

# --- ways of writing ---

@test "tee, cp and dd write as to any directory" {
    bytes 200000 9 >"$BATS_TEST_TMPDIR/source"
    tee "$here/tee" <"$BATS_TEST_TMPDIR/source" >/dev/null
    cp "$BATS_TEST_TMPDIR/source" "$here/cp"
    dd if="$BATS_TEST_TMPDIR/source" of="$here/dd" bs=1234 status=none
    dd if="$BATS_TEST_TMPDIR/source" of="$here/dd-fsync" bs=64k conv=fsync status=none
    local name
    for name in tee cp dd dd-fsync; do
        is_link "$here/$name"
        same "$BATS_TEST_TMPDIR/source" "$here/$name"
    done
}

@test "appending while it is open appends" {
    exec {writer}>>"$here/log"
    echo one >&"$writer"
    echo two >>"$here/log"
    echo three >&"$writer"
    # The second writer's close was not the last.
    is_staged "$here/log"
    exec {writer}>&-
    is_link "$here/log"
    equals "$(cat "$here/log")" $'one\ntwo\nthree'
}

@test "what is being written can be read and measured by others" {
    exec {writer}>"$here/open"
    echo first >&"$writer"
    equals "$(cat "$here/open")" first
    equals "$(stat -c %s "$here/open")" 6
    is_staged "$here/open"
    head -c 200000 "$ROOM/random" >&"$writer"
    equals "$(stat -c %s "$here/open")" 200006
    equals "$(tail -c +7 "$here/open" | sha256sum)" "$(bytes 200000 | sha256sum)"
    exec {writer}>&-
    equals "$(stat -Lc %s "$here/open")" 200006
}

@test "random writes in any order give the same content, inline and large" {
    local size
    for size in 50000 3000001; do
        bytes "$size" 3 >"$BATS_TEST_TMPDIR/source"
        scatter "$BATS_TEST_TMPDIR/source" "$here/scattered-$size" 42
        is_link "$here/scattered-$size"
        same "$BATS_TEST_TMPDIR/source" "$here/scattered-$size"
    done
}

@test "several writers at once each write their part, and the last close commits" {
    local part
    bytes 2000003 3 >"$BATS_TEST_TMPDIR/source"
    exec {holder}>"$here/parts"
    for part in 0 1 2 3; do
        background scatter "$BATS_TEST_TMPDIR/source" "$here/parts" 42 "$part" 4
    done
    await
    is_staged "$here/parts"
    exec {holder}>&-
    is_link "$here/parts"
    same "$BATS_TEST_TMPDIR/source" "$here/parts"
}

@test "writes over what was written before win" {
    exec {writer}<>"$here/over"
    echo aaaaaaaaaa >&"$writer"
    printf bbb | dd of="$here/over" bs=1 seek=3 conv=notrunc status=none
    exec {writer}>&-
    equals "$(cat "$here/over")" aaabbbaaaa
}

@test "a file written through a shared map is what was written" {
    coproc MAP { mapwriter "$here/mapped" 300000 m; }
    local line out=${MAP[0]} in=${MAP[1]} pid=$MAP_PID
    read -ru "$out" line
    equals "$line" closed
    # Closed, but the map can still be written: nobody may take it for complete.
    [[ ! -L $here/mapped ]]
    echo >&"$in"
    read -ru "$out" line
    equals "$line" unmapped
    wait_until '[[ -L $here/mapped ]]'
    equals "$(cat "$here/mapped" | sha256sum)" "$(head -c 300000 /dev/zero | tr '\0' m | sha256sum)"
    exec {in}>&-
    wait "$pid"
}

@test "a small file written through a shared map becomes an object, too" {
    mapwriter "$here/mapped" 1000 s < <(echo) >/dev/null
    wait_until '[[ -L $here/mapped ]]'
    equals "$(cat "$here/mapped")" "$(head -c 1000 /dev/zero | tr '\0' s)"
}

@test "truncate makes a file shorter and longer while it is open" {
    exec {writer}<>"$here/cut"
    echo 0123456789 >&"$writer"
    truncate -s 4 "$here/cut"
    equals "$(cat "$here/cut")" 0123
    truncate -s 8 "$here/cut"
    exec {writer}>&-
    equals "$(od -An -c "$here/cut" | tr -d ' ')" '0123\0\0\0\0'
}

@test "opening with truncation empties a file that is being written" {
    exec {writer}>>"$here/again"
    echo old >&"$writer"
    echo new >"$here/again"
    exec {writer}>&-
    equals "$(cat "$here/again")" new
}

@test "fallocate extends, keeps the size, and punches holes" {
    exec {writer}<>"$here/allocated"
    fallocate -l 200000 "$here/allocated"
    equals "$(stat -c %s "$here/allocated")" 200000
    fallocate -n -o 200000 -l 100000 "$here/allocated"
    equals "$(stat -c %s "$here/allocated")" 200000
    bytes 200000 | dd of="$here/allocated" conv=notrunc bs=64k status=none iflag=fullblock
    fallocate -p -o 65536 -l 65536 "$here/allocated"
    exec {writer}>&-
    is_link "$here/allocated"
    equals "$(stat -Lc %s "$here/allocated")" 200000
    equals "$(head -c 65536 "$here/allocated" | sha256sum)" "$(bytes 65536 | sha256sum)"
    equals "$(tail -c +65537 "$here/allocated" | head -c 65536 | tr -d '\0' | wc -c)" 0
    equals "$(tail -c +131073 "$here/allocated" | sha256sum)" "$(bytes 68928 131072 | sha256sum)"
}

@test "a sparse file reads as zeros and takes little memory" {
    local before
    before=$(used_bytes)
    truncate -s 100M "$here/sparse"
    is_link "$here/sparse"
    equals "$(stat -Lc %s "$here/sparse")" 104857600
    (($(used_bytes) - before < 10000000))
    equals "$(head -c 3000000 "$here/sparse" | tr -d '\0' | wc -c)" 0
    equals "$(tail -c 1000 "$here/sparse" | tr -d '\0' | wc -c)" 0
}

@test "fsync before close succeeds" {
    echo durable >"$BATS_TEST_TMPDIR/source"
    dd if="$BATS_TEST_TMPDIR/source" of="$here/durable" conv=fsync status=none
    equals "$(cat "$here/durable")" durable
    exec {writer}>"$here/durable-too"
    echo x >&"$writer"
    sync "$here/durable-too"
    exec {writer}>&-
    is_link "$here/durable-too"
}

@test "chmod while it is open decides whether the object is executable" {
    exec {writer}>"$here/program"
    printf '#!/bin/sh\necho works\n' >&"$writer"
    chmod 755 "$here/program"
    exec {writer}>&-
    equals "$(stat -Lc %a "$here/program")" 555
    equals "$("$here/program")" works
}

# --- descriptors ---

@test "a descriptor held open across other work commits when it is closed" {
    exec {writer}>"$here/held"
    echo before >&"$writer"
    bytes 100000 >"$here/other"
    rm "$here/other"
    mkdir "$here/directory"
    is_staged "$here/held"
    echo after >&"$writer"
    exec {writer}>&-
    is_link "$here/held"
    equals "$(cat "$here/held")" $'before\nafter'
}

@test "a duplicated descriptor keeps the file open, also in a child" {
    exec {writer}>"$here/dup"
    exec {copy}>&"$writer"
    exec {writer}>&-
    is_staged "$here/dup"
    coproc CHILD {
        read -r
        echo "from the child" >&"$copy"
    }
    local in=${CHILD[1]} pid=$CHILD_PID
    exec {copy}>&-
    # Only the child has it now.
    is_staged "$here/dup"
    echo >&"$in"
    wait "$pid"
    wait_until '[[ -L $here/dup ]]'
    equals "$(cat "$here/dup")" "from the child"
}

@test "a writer that is killed commits what it had written" {
    background bash -c 'exec 5>"$1/killed"; head -c 150000 "$2" >&5; read -r <>"$3"' - \
        "$here" "$ROOM/random" "$(mkfifo "$BATS_TEST_TMPDIR/never" && echo "$BATS_TEST_TMPDIR/never")"
    local pid=$!
    wait_until '[[ $(stat -c %s "$here/killed" 2>/dev/null) == 150000 ]]'
    is_staged "$here/killed"
    kill -KILL "$pid"
    wait_until '[[ -L $here/killed ]]'
    equals "$(digest "$here/killed")" "$(bytes 150000 | sha256sum | cut -d' ' -f1)"
}

# --- existing names ---

@test "O_EXCL refuses a name that exists, written or being written" {
    echo x >"$here/there"
    refused EEXIST open-exclusive "$here/there"
    exec {writer}>"$here/open"
    refused EEXIST open-exclusive "$here/open"
    exec {writer}>&-
    run bash -c 'set -C; echo y >"$1"' - "$here/there"
    [[ $status -ne 0 ]]
    equals "$(cat "$here/there")" x
}

@test "a committed name is not written to, but replaced by rename, cp -f or rm" {
    echo old >"$here/name"
    refused 'EPERM|EACCES' open-write "$here/name"
    refused 'EPERM|EACCES' open-append "$here/name"
    refused 'EPERM|EACCES' open-truncate "$here/name"
    run cp "$ROOM/random" "$here/name"
    [[ $status -ne 0 ]]
    echo new >"$here/next"
    mv "$here/next" "$here/name"
    equals "$(cat "$here/name")" new
    echo newer >"$BATS_TEST_TMPDIR/newer"
    cp -f "$BATS_TEST_TMPDIR/newer" "$here/name"
    equals "$(cat "$here/name")" newer
    cp --remove-destination "$ROOM/random" "$here/name"
    same "$ROOM/random" "$here/name"
    rm "$here/name"
    echo last >"$here/name"
    equals "$(cat "$here/name")" last
}

@test "sed -i replaces a name" {
    echo "hello world" >"$here/text"
    sed -i s/world/mobula/ "$here/text"
    is_link "$here/text"
    equals "$(cat "$here/text")" "hello mobula"
    equals "$(ls -A "$here")" text
}

# --- names ---

@test "a file can be renamed while it is written, and is committed under the new name" {
    mkdir "$here/directory"
    exec {writer}>"$here/before"
    echo one >&"$writer"
    mv "$here/before" "$here/directory/after"
    refused ENOENT stat "$here/before"
    is_staged "$here/directory/after"
    echo two >&"$writer"
    exec {writer}>&-
    is_link "$here/directory/after"
    equals "$(cat "$here/directory/after")" $'one\ntwo'
    refused ENOENT stat "$here/before"
}

@test "a file that is unlinked while it is written leaves no object and no memory" {
    local before objects
    before=$(used_bytes)
    objects=$(object_count)
    exec {writer}<>"$here/doomed"
    bytes 4000000 >&"$writer"
    rm "$here/doomed"
    refused ENOENT stat "$here/doomed"
    echo more >&"$writer"
    equals "$(stat -Lc %s "/proc/self/fd/$writer")" 4000005
    exec {writer}>&-
    wait_until '(( $(used_bytes) <= '"$before"' + 1000000 ))'
    equals "$(object_count)" "$objects"
    equals "$(ls -A "$here")" ""
}

@test "rename over a file that is being written unlinks that file" {
    exec {writer}>"$here/target"
    echo loser >&"$writer"
    echo winner >"$here/source"
    mv -f "$here/source" "$here/target"
    equals "$(cat "$here/target")" winner
    echo still >&"$writer"
    exec {writer}>&-
    equals "$(cat "$here/target")" winner
    equals "$(ls -A "$here")" target
}

@test "renaming a file that is being written over a link replaces the link at once" {
    echo old >"$here/target"
    exec {writer}>"$here/source"
    echo new >&"$writer"
    mv -f "$here/source" "$here/target"
    is_staged "$here/target"
    exec {writer}>&-
    is_link "$here/target"
    equals "$(cat "$here/target")" new
}

@test "two names can be exchanged, and a rename can refuse to replace" {
    echo a >"$here/a"
    echo b >"$here/b"
    allowed rename-exchange "$here/a" "$here/b"
    equals "$(cat "$here/a" "$here/b")" $'b\na'
    refused EEXIST rename-noreplace "$here/a" "$here/b"
    allowed rename-noreplace "$here/a" "$here/c"
    equals "$(cat "$here/c")" b
}

@test "a name can have 255 bytes and any of them but slash and NUL" {
    local long name
    long=$(printf 'n%.0s' {1..255})
    echo x >"$here/$long"
    is_link "$here/$long"
    refused ENAMETOOLONG open-exclusive "$here/${long}n"
    refused ENAMETOOLONG mkdir "$here/${long}n"
    for name in 'with space' $'new\nline' 'ünïcödé ☂' $'\x01\xff\xfe' '-dash' '*' '"quote"' '.hidden' '..dots'; do
        echo "$name" >"$here/$name"
        is_link "$here/$name"
        equals "$(cat "$here/$name")" "$name"
    done
    equals "$(find "$here" -mindepth 1 -printf x | wc -c)" 10
    equals "$(find "$here" -name '.hidden')" "$here/.hidden"
    rm -r "$here"
    refused ENOENT stat "$here"
}

@test "hidden files are shown by ls -A and not by ls" {
    echo x >"$here/.hidden"
    equals "$(ls "$here")" ""
    equals "$(ls -A "$here")" .hidden
}

@test "a plain symbolic link keeps its text" {
    ln -s no/such/place "$here/dangling"
    equals "$(readlink "$here/dangling")" no/such/place
    refused ENOENT open-read "$here/dangling"
    ln -s /etc/hostname "$here/absolute"
    equals "$(readlink "$here/absolute")" /etc/hostname
    rm "$here/dangling" "$here/absolute"
    equals "$(ls -A "$here")" ""
}

@test "a fifo, a device or a socket is not for staging" {
    refused 'EPERM|EOPNOTSUPP|ENOSYS|EINVAL' mkfifo "$here/fifo"
    equals "$(ls -A "$here")" ""
}

# --- directories ---

@test "directories are made, listed, removed when empty, and refused when not" {
    mkdir -p "$here/a/b/c"
    echo x >"$here/a/b/c/file"
    refused ENOTEMPTY rmdir "$here/a"
    refused EEXIST mkdir "$here/a"
    refused EISDIR unlink "$here/a"
    refused ENOTDIR rmdir "$here/a/b/c/file"
    refused ENOTDIR mkdir "$here/a/b/c/file/d"
    equals "$(stat -c %h "$here/a")" 3
    rm "$here/a/b/c/file"
    rmdir -p --ignore-fail-on-non-empty "$here/a/b/c"
    refused ENOENT stat "$here/a"
}

@test "rm -r removes a tree with its objects" {
    local id
    mkdir -p "$here/tree/a/b"
    echo 1 >"$here/tree/one"
    echo 2 >"$here/tree/a/two"
    bytes 500000 >"$here/tree/a/b/three"
    id=$(basename "$(readlink "$here/tree/a/b/three")")
    rm -r "$here/tree"
    refused ENOENT stat "$here/tree"
    wait_until gone "$MNT/objects/$id"
}

@test "links are right at once after their directory has moved to another depth" {
    local id
    mkdir -p "$here/deep/er/est" "$here/x"
    echo content >"$here/deep/er/est/file"
    id=$(basename "$(readlink "$here/deep/er/est/file")")
    equals "$(cat "$here/deep/er/est/file")" content
    mv "$here/deep/er/est" "$here/x/flat"
    equals "$(readlink "$here/x/flat/file")" "../../../../objects/$id"
    equals "$(cat "$here/x/flat/file")" content
    mv "$here/x/flat" "$here/top"
    equals "$(readlink "$here/top/file")" "../../../objects/$id"
    equals "$(cat "$here/top/file")" content
    mv "$here/top" "$MNT/staging/top-$BATS_TEST_NUMBER"
    equals "$(readlink "$MNT/staging/top-$BATS_TEST_NUMBER/file")" "../../objects/$id"
    equals "$(cat "$MNT/staging/top-$BATS_TEST_NUMBER/file")" content
    mv "$MNT/staging/top-$BATS_TEST_NUMBER/file" "$here/deep/er/file"
    equals "$(readlink "$here/deep/er/file")" "../../../../objects/$id"
    equals "$(cat "$here/deep/er/file")" content
}

@test "a file being written moves with its directory" {
    mkdir -p "$here/from/sub" "$here/to"
    exec {writer}>"$here/from/sub/file"
    echo one >&"$writer"
    mv "$here/from/sub" "$here/to/sub"
    echo two >&"$writer"
    exec {writer}>&-
    is_link "$here/to/sub/file"
    equals "$(cat "$here/to/sub/file")" $'one\ntwo'
    refused ENOENT stat "$here/from/sub"
}

@test "a directory is not moved into itself, nor over one that is not empty" {
    mkdir -p "$here/a/b" "$here/c/d"
    refused EINVAL rename "$here/a" "$here/a/b/a"
    refused 'ENOTEMPTY|EEXIST' rename "$here/a" "$here/c"
    rmdir "$here/c/d"
    allowed rename "$here/a" "$here/c"
    [[ -d $here/c/b ]]
    echo x >"$here/file"
    refused ENOTDIR rename "$here/c" "$here/file"
    refused EISDIR rename "$here/file" "$here/c"
}

@test "names do not move between staging and run by rename" {
    echo x >"$here/file"
    refused EXDEV rename "$here/file" "$MNT/run/file"
    is_link "$here/file"
}

@test "a thousand names in a directory are listed, each once, also while others are removed" {
    bash -c 'cd "$1" && for ((i = 0; i < 1000; i++)); do echo "$i" >"n$i"; done' - "$here"
    equals "$(ls -A "$here" | wc -l)" 1000
    equals "$(find "$here" -name 'n*' | sort -u | wc -l)" 1000
    find "$here" -name 'n*[05]' -delete
    equals "$(ls -A "$here" | wc -l)" 800
    rm -r "$here"
}

# --- whole trees ---

make_tree() {
    mkdir -p "$1/empty-directory" "$1/sub/subsub"
    echo hello >"$1/hello"
    : >"$1/empty"
    bytes 150000 >"$1/large"
    bytes 4097 5 >"$1/sub/page"
    printf '#!/bin/sh\necho ran\n' >"$1/sub/subsub/script"
    chmod 755 "$1/sub/subsub/script"
    chmod 640 "$1/hello"
    touch -d '2020-02-02 02:02:02' "$1/sub/page" "$1/sub"
    ln -s ../hello "$1/sub/link"
    echo hidden >"$1/.hidden"
}

compare_trees() { # SOURCE COPY
    diff -r "$1" "$2"
    equals "$("$2/sub/subsub/script")" ran
    equals "$(cat "$2/sub/link")" hello
    [[ -d $2/empty-directory ]]
    equals "$(find "$2" -type f)" "" "files that are no links"
}

@test "cp -r copies a tree in" {
    make_tree "$BATS_TEST_TMPDIR/tree"
    cp -r "$BATS_TEST_TMPDIR/tree" "$here/tree"
    compare_trees "$BATS_TEST_TMPDIR/tree" "$here/tree"
}

@test "cp -a copies a tree in without a complaint" {
    make_tree "$BATS_TEST_TMPDIR/tree"
    run cp -a "$BATS_TEST_TMPDIR/tree" "$here/tree"
    equals "$status $output" "0 "
    compare_trees "$BATS_TEST_TMPDIR/tree" "$here/tree"
    equals "$(stat -c %Y "$here/tree/sub")" "$(stat -c %Y "$BATS_TEST_TMPDIR/tree/sub")"
}

@test "cp -a makes hard links of the source names of one object" {
    mkdir "$BATS_TEST_TMPDIR/tree"
    echo one >"$BATS_TEST_TMPDIR/tree/a"
    ln "$BATS_TEST_TMPDIR/tree/a" "$BATS_TEST_TMPDIR/tree/b"
    run cp -a "$BATS_TEST_TMPDIR/tree" "$here/tree"
    equals "$status $output" "0 "
    equals "$(readlink "$here/tree/a")" "$(readlink "$here/tree/b")"
    equals "$(links "$MNT/objects/$(basename "$(readlink "$here/tree/a")")")" 2
}

@test "cp -r copies a tree out and back in" {
    make_tree "$BATS_TEST_TMPDIR/tree"
    cp -r "$BATS_TEST_TMPDIR/tree" "$here/tree"
    cp -rL "$here/tree" "$BATS_TEST_TMPDIR/out"
    diff -r "$BATS_TEST_TMPDIR/tree" "$BATS_TEST_TMPDIR/out"
    cp -r "$BATS_TEST_TMPDIR/out" "$here/again"
    diff -r "$BATS_TEST_TMPDIR/tree" "$here/again"
}

@test "cp -a within staging makes more names of the same objects" {
    local id
    make_tree "$BATS_TEST_TMPDIR/tree"
    cp -r "$BATS_TEST_TMPDIR/tree" "$here/tree"
    id=$(basename "$(readlink "$here/tree/large")")
    cp -a "$here/tree" "$here/copy"
    equals "$(basename "$(readlink "$here/copy/large")")" "$id"
    rm -r "$here/tree"
    equals "$(digest "$here/copy/large")" "$(digest "$BATS_TEST_TMPDIR/tree/large")"
}

# rsync sets permissions after it has closed a file, when that is an object that nobody may chmod.
@test "mv from another store is refused, and the object stays there" {
    local other=$ROOM/other-mnt id
    mkdir "$other"
    up "$other" "$ROOM/other-state"
    remember_daemon "$other"
    echo kept >"$other/staging/kept"
    id=$(basename "$(readlink "$other/staging/kept")")
    run mv "$other/staging/kept" "$here/moved"
    equals "$status" 1
    matches "$output" "Invalid cross-device link"
    equals "$(cat "$other/staging/kept")" kept
    gone "$here/moved"
    cp "$other/staging/kept" "$here/copied"
    equals "$(cat "$here/copied")" kept
    refused EXDEV symlink "$here/job" "../jobs/$id"
    allowed symlink "$here/text" "no/$id" # not one of ours
    mobula down "$other"
}

@test "rsync -a copies everything, and has nothing to complain about but permissions" {
    local round
    make_tree "$BATS_TEST_TMPDIR/tree"
    for round in 1 2; do
        run within 30 rsync -a "$BATS_TEST_TMPDIR/tree/" "$here/tree/"
        matches "$status" '^(0|23)$'
        equals "$(grep -v -e 'failed to set permissions' -e '(code 23)' <<<"$output")" "" "round $round"
        diff -r "$BATS_TEST_TMPDIR/tree" "$here/tree"
        equals "$(find "$here/tree" -type f)" "" "files that are no links"
        equals "$(stat -c %Y "$here/tree/sub")" "$(stat -c %Y "$BATS_TEST_TMPDIR/tree/sub")"
    done
}

@test "tar x unpacks a tree" {
    make_tree "$BATS_TEST_TMPDIR/tree"
    tar -C "$BATS_TEST_TMPDIR/tree" -czf "$BATS_TEST_TMPDIR/tree.tar.gz" .
    mkdir "$here/tree"
    run tar -C "$here/tree" -xzf "$BATS_TEST_TMPDIR/tree.tar.gz"
    equals "$status $output" "0 "
    compare_trees "$BATS_TEST_TMPDIR/tree" "$here/tree"
}

@test "tar c packs what is in staging, with its content when links are followed" {
    make_tree "$BATS_TEST_TMPDIR/tree"
    cp -r "$BATS_TEST_TMPDIR/tree" "$here/tree"
    mkdir "$BATS_TEST_TMPDIR/out"
    tar -C "$here/tree" -ch . | tar -C "$BATS_TEST_TMPDIR/out" -x
    diff -r "$BATS_TEST_TMPDIR/tree" "$BATS_TEST_TMPDIR/out"
}

@test "mv from another filesystem moves files and trees" {
    bytes 300000 >"$BATS_TEST_TMPDIR/file"
    run mv "$BATS_TEST_TMPDIR/file" "$here/file"
    equals "$status $output" "0 "
    [[ ! -e $BATS_TEST_TMPDIR/file ]]
    equals "$(digest "$here/file")" "$(bytes 300000 | sha256sum | cut -d' ' -f1)"
    make_tree "$BATS_TEST_TMPDIR/tree"
    cp -a "$BATS_TEST_TMPDIR/tree" "$BATS_TEST_TMPDIR/kept"
    run mv "$BATS_TEST_TMPDIR/tree" "$here/tree"
    equals "$status $output" "0 "
    [[ ! -e $BATS_TEST_TMPDIR/tree ]]
    compare_trees "$BATS_TEST_TMPDIR/kept" "$here/tree"
}

# --- attributes ---

@test "extended attributes set while it is open are kept with the object" {
    exec {writer}>"$here/noted"
    setfattr -n user.note -v "made by a test" "$here/noted"
    setfattr -n user.gone -v x "$here/noted"
    setfattr -x user.gone "$here/noted"
    equals "$(getfattr --only-values -n user.note "$here/noted")" "made by a test"
    echo x >&"$writer"
    exec {writer}>&-
    equals "$(getfattr --only-values -n user.note "$here/noted")" "made by a test"
    getfattr -d "$here/noted" >"$BATS_TEST_TMPDIR/all"
    grep -q user.note "$BATS_TEST_TMPDIR/all"
    run ! grep -q user.gone "$BATS_TEST_TMPDIR/all"
    refused 'EPERM|EROFS|EACCES' setxattr "$here/noted" user.note=changed
}

@test "attributes of mobula's own are not for setting" {
    exec {writer}>"$here/noted"
    refused EPERM setxattr "$here/noted" user.mobula.tier=disk
    refused EPERM setxattr "$here/noted" user.mobula.state=ready
    exec {writer}>&-
    is_link "$here/noted"
}

# --- memory ---

@test "a full store that may not spill gives ENOSPC, and everything committed stays readable" {
    local mnt=$ROOM/small-mnt
    mkdir "$mnt"
    memory=64M up "$mnt" "$ROOM/small-state" --spill none
    sed -n -E 's/^(keeper_)?pid //p' "$mnt"/nodes/*/daemon >>"$ROOM/pids"
    bytes 8000000 >"$mnt/staging/kept"
    echo small >"$mnt/staging/small"
    run dd if=/dev/zero of="$mnt/staging/huge" bs=1M count=100
    [[ $status -ne 0 ]]
    matches "$output" 'No space left'
    equals "$(digest "$mnt/staging/kept")" "$(bytes 8000000 | sha256sum | cut -d' ' -f1)"
    equals "$(cat "$mnt/staging/small")" small
    rm -f "$mnt/staging/huge"
    # And there is room again.
    wait_until '(( $(df -B1 --output=avail '"$mnt"' | tail -n 1) > 40000000 ))'
    bytes 8000000 8 >"$mnt/staging/again"
    equals "$(digest "$mnt/staging/again")" "$(bytes 8000000 8 | sha256sum | cut -d' ' -f1)"
    run within 30 mobula down "$mnt"
    equals "$status $output" "0 "
}

@test "memory is back at its start level when all names are gone" {
    local before
    rm -r "${MNT:?}"/staging/*
    wait_until '[[ $(object_count) -eq 0 ]]'
    before=$(used_bytes)
    mkdir "$here"
    bash -c 'cd "$1" && for ((i = 0; i < 30; i++)); do head -c 500000 "$2" >"large-$i"; echo "$i" >"small-$i"; done' - \
        "$here" "$ROOM/random"
    (($(used_bytes) - before >= 15000000))
    rm -r "$here"
    wait_until '[[ $(object_count) -eq 0 ]]'
    wait_until '(( $(used_bytes) <= '"$before"' + 1000000 ))'
}
