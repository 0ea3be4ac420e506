#!/usr/bin/env bats
# Encryption at rest: with --spill-key nothing that an object contains is on a disk as it is, all of
# it reads the same, and what was changed on the disk is never read.

# shellcheck disable=SC2016,SC2030,SC2031

load helper

setup_file() {
    export KEY=$BATS_FILE_TMPDIR/key
    openssl rand -hex 32 >"$KEY"
    chmod 600 "$KEY"
    memory=64M start_mount --spill-key "$KEY"
    export AFTER=$ROOM/after AFTER_STATE=$ROOM/after-state
    mkdir "$AFTER"
    marked 150000000 >"$ROOM/large"
    sha256sum <"$ROOM/large" >"$ROOM/large.sum"
}

teardown() {
    if is_mounted "$AFTER"; then within 30 mobula down "$AFTER"; fi
    rm -rf "$AFTER_STATE"
    end_test
}

teardown_file() { stop_mount; }

# marked BYTES [WORD]: bytes that are easily found again, no two blocks of them equal.
marked() {
    awk -v bytes="$1" -v word="${2:-PLAINTEXT}" 'BEGIN {
        for (done = 0; done < bytes; done += length(line)) {
            line = sprintf("%s-%015d-MARKER\n", word, done)
            printf "%s", substr(line, 1, bytes - done)
        }
    }'
}

same_as_large() { equals "$(sha256sum <"$1")" "$(cat "$ROOM/large.sum")"; }
tier() { attribute tier "$(realpath "$MNT/staging/$1")"; }
place() { attribute place "$(realpath "$MNT/staging/$1")"; }

# plaintext_lines WORD DIRECTORY: how many lines with such bytes the files of a state have. The memory
# is not the disk's; the database is a file of many holes.
plaintext_lines() {
    tar -C "$2" --exclude=./memory --sparse -cf - . 2>/dev/null | grep -caF -- "$1-0" || true
}

no_plaintext() { equals "$(plaintext_lines "${1:-PLAINTEXT}" "${2:-$STATE}")" 0; }

# sealed NAME: the checksums of its file have been made, by reading it, and the file says so.
sealed() { mobula doctor --spill "$STATE/spill" | grep -q "^intact .*$(basename "$(place "$1")"), encrypted"; }

again() {
    within 30 mobula down "$MNT"
    no_plaintext
    memory=64M up "$MNT" "$STATE" --spill-key "$KEY"
    remember_daemon
}

@test "objects of all sizes are nowhere on the disk as they are, and read the same" {
    local bytes name
    for bytes in 1 200 1500 1600 60000 102400 102401 1048576 3000001; do
        marked "$bytes" >"$MNT/staging/size-$bytes"
    done
    for name in a b c; do cp "$ROOM/large" "$MNT/staging/$name"; done
    no_plaintext
    for name in a b c; do same_as_large "$MNT/staging/$name"; done
    equals "$(tier a)" disk
    again
    for bytes in 1 200 1500 1600 60000 102400 102401 1048576 3000001; do
        same "$MNT/staging/size-$bytes" <(marked "$bytes")
        equals "$(attribute sha256 "$(realpath "$MNT/staging/size-$bytes")")" \
            "$(marked "$bytes" | sha256sum | cut -d' ' -f1)"
    done
    for name in a b c; do same_as_large "$MNT/staging/$name"; done
    no_plaintext
    rm "$MNT"/staging/size-* "$MNT"/staging/[abc]
    wait_until '(($(node memory disk_used_bytes) == 0))'
}

@test "status says that it is encrypted, and doctor verifies the directory without the key" {
    cp "$ROOM/large" "$MNT/staging/verified"
    run within 20 mobula status "$MNT"
    matches "$output" ', encrypted\)'
    matches "$(node memory spill_key)" '^[0-9a-f]{32}$'
    equals "$(sed -n 's/^key //p' "$STATE/spill/mobula-spill")" "$(node memory spill_key)"
    wait_until '[[ $(mobula doctor --spill "$STATE/spill" | grep -c "^intact .*encrypted") -eq 1 ]]'
    rm "$MNT/staging/verified"
}

@test "a file larger than memory is put through a pipe, by three writers, and written at its beginning" {
    local name writers=()
    dd if="$ROOM/large" bs=64k status=none | dd of="$MNT/staging/piped" bs=64k status=none
    same_as_large "$MNT/staging/piped"
    for name in a b c; do
        cp "$ROOM/large" "$MNT/staging/$name" &
        writers+=($!)
    done
    for name in "${writers[@]}"; do wait "$name"; done
    for name in a b c; do same_as_large "$MNT/staging/$name"; done
    (($(used_bytes) <= 70 << 20))
    # What has gone to the disk is written again, in the middle of blocks.
    cp "$ROOM/large" "$ROOM/changed"
    exec {fd}<>"$MNT/staging/changed"
    cat "$ROOM/large" >&"$fd"
    for name in 0 5 1048570 2097152 33333333; do
        marked 5000 CHANGED | dd of="$ROOM/changed" bs=1 seek="$name" conv=notrunc status=none
        marked 5000 CHANGED | dd of="/proc/self/fd/$fd" bs=5000 oflag=seek_bytes seek="$name" \
            conv=notrunc status=none iflag=fullblock
    done
    exec {fd}>&-
    same "$MNT/staging/changed" "$ROOM/changed"
    no_plaintext
    no_plaintext CHANGED
    rm "$MNT"/staging/{piped,a,b,c,changed} "$ROOM/changed"
}

@test "what is on disk is read at any place, mapped or not" {
    cp "$ROOM/large" "$MNT/staging/places"
    local offset
    for offset in 0 1 65535 65536 1048575 1048576 77777777 149999000; do
        same <(tail -c +$((offset + 1)) "$MNT/staging/places" | head -c 70000) \
            <(tail -c +$((offset + 1)) "$ROOM/large" | head -c 70000)
    done
    within 30 readways mmap "$MNT/staging/places" "$ROOM/mapped.copy"
    same_as_large "$ROOM/mapped.copy"
    rm "$MNT/staging/places" "$ROOM/mapped.copy"
}

@test "a byte that changes on disk gives EIO, names the object and its block; the rest is read" {
    local file
    cp "$ROOM/large" "$MNT/staging/flipped"
    file=$(place flipped)
    wait_until sealed flipped # else that notices it first
    printf 'X%.0s' {1..64} | dd of="$file" bs=1 seek=$((77 * (1048576 + 4096) + 5000)) conv=notrunc status=none
    same <(head -c 10000000 "$MNT/staging/flipped") <(head -c 10000000 "$ROOM/large")
    run cat "$MNT/staging/flipped"
    ((status != 0))
    matches "$output" "Input/output error"
    matches "$(attribute error "$(realpath "$MNT/staging/flipped")")" "block 77"
    equals "$(node memory damaged_objects)" 1
    rm "$MNT/staging/flipped"
}

@test "blocks of another file, or of another place, are not taken" {
    cp "$ROOM/large" "$MNT/staging/one"
    cp "$ROOM/large" "$MNT/staging/two"
    wait_until sealed one
    wait_until sealed two
    dd if="$(place two)" of="$(place one)" bs=1052672 count=1 conv=notrunc status=none
    dd if="$(place two)" of="$(place two)" bs=1052672 count=1 skip=4 seek=6 conv=notrunc status=none
    run cat "$MNT/staging/one"
    ((status != 0))
    run cat "$MNT/staging/two"
    ((status != 0))
    matches "$(attribute error "$(realpath "$MNT/staging/two")")" "block 6"
    rm "$MNT/staging/one" "$MNT/staging/two"
}

@test "what a job prints, and its result, are not on the disk as they are" {
    printf '{"command": ["cat", "%s"]}' "$ROOM/part" >"$ROOM/spec"
    marked 5000000 >"$ROOM/part"
    cp "$ROOM/spec" "$MNT/run/prints"
    same "$MNT/run/prints/result" "$ROOM/part"
    same "$MNT/run/prints/stdout" "$ROOM/part"
    no_plaintext
    again
    same "$MNT/run/prints/result" "$ROOM/part"
    rm "$MNT/run/prints" "$ROOM/part" "$ROOM/spec"
}

@test "a server that is killed takes nothing with it, and leaves nothing on the disk as it is" {
    local writer
    cp "$ROOM/large" "$MNT/staging/before"
    marked 700 >"$MNT/staging/tiny"
    cp "$ROOM/large" "$MNT/staging/meanwhile" &
    writer=$!
    wait_until '[[ $(stat -c %s "$MNT/staging/meanwhile" 2>/dev/null) -gt 90000000 ]]'
    kill -KILL "$(node daemon pid)"
    wait "$writer"
    remember_daemon
    same_as_large "$MNT/staging/meanwhile"
    same_as_large "$MNT/staging/before"
    same "$MNT/staging/tiny" <(marked 700)
    no_plaintext
    rm "$MNT"/staging/{meanwhile,before,tiny}
}

@test "what was synced is there after a crash, small or large, and not as it is" {
    marked 300 | dd of="$MNT/staging/small" conv=fsync status=none
    marked 60000 | dd of="$MNT/staging/inline" conv=fsync status=none
    marked 5000000 | dd of="$MNT/staging/large" bs=1M conv=fsync status=none
    exec 7>"$MNT/staging/open-small" 8>"$MNT/staging/open-large"
    marked 2000 >&7
    marked 3000000 >&8
    sync "$MNT/staging/open-small" "$MNT/staging/open-large"
    sync "$MNT" # nothing changes its place while it is copied
    no_plaintext
    cp -ax --sparse=always "$STATE" "$AFTER_STATE" # a stopped server couldn't hear of cp's end
    rm "$AFTER_STATE/log"
    exec 7>&- 8>&-
    memory=64M up "$AFTER" "$AFTER_STATE" --spill "$AFTER_STATE/spill" --spill-key "$KEY"
    remember_daemon "$AFTER"
    same "$AFTER/staging/small" <(marked 300)
    same "$AFTER/staging/inline" <(marked 60000)
    same "$AFTER/staging/large" <(marked 5000000)
    same "$AFTER/staging/open-small" <(marked 2000)
    same "$AFTER/staging/open-large" <(marked 3000000)
    no_plaintext PLAINTEXT "$AFTER_STATE"
    rm "$MNT"/staging/{small,inline,large,open-small,open-large}
}

@test "without the key, with another one, or with none in the file, up is refused and says so" {
    marked 100000 >"$MNT/staging/kept"
    within 30 mobula down "$MNT"
    openssl rand -hex 32 >"$ROOM/other"
    echo hello >"$ROOM/none"
    chmod 600 "$ROOM/other" "$ROOM/none"
    memory=64M run up "$MNT" "$STATE"
    equals "$status" 69
    matches "$output" "is encrypted: give its key with --spill-key"
    memory=64M run up "$MNT" "$STATE" --spill-key "$ROOM/other"
    equals "$status" 69
    matches "$output" "encrypted with another key than that in $ROOM/other"
    memory=64M run up "$MNT" "$STATE" --spill-key "$ROOM/none"
    ((status != 0))
    matches "$output" "$ROOM/none: expected 32 bytes, or 64 hexadecimal digits"
    memory=64M run up "$MNT" "$STATE" --spill-key "$ROOM/missing"
    ((status != 0))
    matches "$output" "$ROOM/missing: No such file"
    memory=64M run up "$MNT" "$STATE" --spill none --spill-key "$KEY"
    ((status != 0))
    matches "$output" "spill none"
    memory=64M up "$MNT" "$STATE" --spill-key "$KEY"
    remember_daemon
    same "$MNT/staging/kept" <(marked 100000)
    rm "$MNT/staging/kept" "$ROOM/other" "$ROOM/none"
}

@test "a state that had no key gets one: what was there stays, what comes is encrypted" {
    memory=64M up "$AFTER" "$AFTER_STATE"
    remember_daemon "$AFTER"
    marked 1000 OLD >"$AFTER/staging/old-small"
    cp "$ROOM/large" "$AFTER/staging/old-large"
    within 30 mobula down "$AFTER"
    memory=64M up "$AFTER" "$AFTER_STATE" --spill-key "$KEY"
    remember_daemon "$AFTER"
    matches "$(cat "$AFTER_STATE/log")" "is encrypted from now on: what was on disk before stays"
    same "$AFTER/staging/old-small" <(marked 1000 OLD)
    same_as_large "$AFTER/staging/old-large"
    marked 1000 NEW >"$AFTER/staging/new-small"
    marked 150000000 NEW >"$AFTER/staging/new-large"
    within 30 mobula down "$AFTER"
    no_plaintext NEW "$AFTER_STATE"
    (($(plaintext_lines OLD "$AFTER_STATE") > 0))
    memory=64M up "$AFTER" "$AFTER_STATE" --spill-key "$KEY"
    remember_daemon "$AFTER"
    same "$AFTER/staging/new-small" <(marked 1000 NEW)
    same "$AFTER/staging/new-large" <(marked 150000000 NEW)
    same_as_large "$AFTER/staging/old-large"
}

@test "memory that the disk has no room for is not kept on it by who gives no key" {
    memory=64M up "$AFTER" "$AFTER_STATE" --disk 8M --spill-key "$KEY"
    marked 20000000 >"$AFTER/staging/kept"
    within 30 mobula down "$AFTER"
    no_plaintext PLAINTEXT "$AFTER_STATE"
    memory=64M run up "$AFTER" "$AFTER_STATE" --disk 8M
    equals "$status" 69
    no_plaintext PLAINTEXT "$AFTER_STATE"
    memory=64M up "$AFTER" "$AFTER_STATE" --spill-key "$KEY"
    remember_daemon "$AFTER"
    same "$AFTER/staging/kept" <(marked 20000000)
}

@test "a key that is refused for another reason leaves the state as it was, without one" {
    local spills=(--spill "$AFTER_STATE/one" --spill "$AFTER_STATE/two") name
    memory=64M up "$AFTER" "$AFTER_STATE" "${spills[@]}"
    for name in a b c; do cp "$ROOM/large" "$AFTER/staging/$name"; done
    within 30 mobula down "$AFTER"
    mv "$AFTER_STATE/two" "$AFTER_STATE/away"
    memory=64M run up "$AFTER" "$AFTER_STATE" "${spills[@]}" --spill-key "$KEY"
    equals "$status" 69
    matches "$output" "which is not there"
    mv "$AFTER_STATE/away" "$AFTER_STATE/two"
    memory=64M up "$AFTER" "$AFTER_STATE" "${spills[@]}"
    remember_daemon "$AFTER"
    for name in a b c; do same_as_large "$AFTER/staging/$name"; done
}

@test "after a crash, a start that is refused takes nothing of what was synced" {
    exec 7>"$MNT/staging/open-small" 8>"$MNT/staging/open-large"
    marked 2000 >&7
    marked 3000000 >&8
    sync "$MNT/staging/open-small" "$MNT/staging/open-large"
    cp -ax --sparse=always "$STATE" "$AFTER_STATE"
    exec 7>&- 8>&-
    memory=64M run up "$AFTER" "$AFTER_STATE" --spill "$AFTER_STATE/spill"
    equals "$status" 69
    memory=64M up "$AFTER" "$AFTER_STATE" --spill "$AFTER_STATE/spill" --spill-key "$KEY"
    remember_daemon "$AFTER"
    same "$AFTER/staging/open-small" <(marked 2000)
    same "$AFTER/staging/open-large" <(marked 3000000)
    rm "$MNT"/staging/open-{small,large}
}

@test "a key in a FIFO that nobody writes to is refused at once" {
    mkfifo "$ROOM/fifo"
    memory=64M run up "$AFTER" "$AFTER_STATE" --spill-key "$ROOM/fifo"
    equals "$status" 69
    matches "$output" "$ROOM/fifo: expected 32 bytes"
    rm "$ROOM/fifo"
}

@test "fallocate that keeps the size keeps it, though memory has no room" {
    exec 7>"$MNT/staging/allocated"
    marked 3000000 >&7
    run within 30 fallocate -n -l 200M "$MNT/staging/allocated"
    equals "$(stat -Lc %s "$MNT/staging/allocated")" 3000000
    exec 7>&-
    same "$MNT/staging/allocated" <(marked 3000000)
    rm "$MNT/staging/allocated"
}

@test "while files that are open have all of memory, another one is written without waiting" {
    within 20 bash -c '
        for ((i = 0; i < 66; i++)); do
            exec {fd}>"$1/staging/holds-$i"
            head -c 1000000 /dev/zero >&"$fd"
        done
        head -c 20000000 /dev/zero >"$1/staging/written"' bash "$MNT"
    equals "$(stat -Lc %s "$MNT/staging/written")" 20000000
    rm "$MNT"/staging/{holds-*,written}
}

@test "a hole that the disk has no room for fails the close, and fills no disk" {
    memory=64M up "$AFTER" "$AFTER_STATE" --disk 200M --spill-key "$KEY"
    remember_daemon "$AFTER"
    exec 7>"$AFTER/staging/holes"
    marked 100000000 >&7
    run within 30 truncate -s 3G "$AFTER/staging/holes"
    ((status != 0))
    matches "$output" "No space left"
    (($(du -s --block-size=1M "$AFTER_STATE/spill" | cut -f1) < 300))
    exec 7>&-
    rm "$AFTER/staging/holes"
}
