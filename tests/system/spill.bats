#!/usr/bin/env bats
# Memory is a tier: objects that don't fit go to disk and are read from there, one file may be larger
# than memory, and what is damaged on disk is never read.

# shellcheck disable=SC2002,SC2016,SC2030,SC2031

load helper

setup_file()
{
    start_mount
    # A mount of its own, whose memory is small, so that little data does.
    export SMALL=$ROOM/small SMALL_STATE=$ROOM/small-state
    mkdir "$SMALL"
    up "$SMALL" "$SMALL_STATE" --memory 64M
    sed -n -E 's/^(keeper_)?pid //p' "$SMALL"/nodes/*/daemon >>"$ROOM/pids"
    head -c 200M /dev/urandom >"$ROOM/large"
    sha256sum <"$ROOM/large" >"$ROOM/large.sum"
}

teardown() {
    end_test
    if mountpoint -q "$ROOM/full-disk"; then umount "$ROOM/full-disk"; fi
}

teardown_file() {
    if is_mounted "$SMALL"; then within 30 mobula down "$SMALL"; fi
    stop_mount
}

small_value() { sed -n "s/^$2 //p" "$SMALL"/nodes/*/"$1"; }
same_as_large() { equals "$(sha256sum <"$1")" "$(cat "$ROOM/large.sum")"; }

@test "an object of three times the memory is put by cp, and reads the same" {
    cp "$ROOM/large" "$SMALL/staging/copied"
    same_as_large "$SMALL/staging/copied"
    equals "$(getfattr --only-values -n user.mobula.tier "$SMALL/staging/copied")" disk
    rm "$SMALL/staging/copied"
}

@test "an object of three times the memory is put through a pipe" {
    cat "$ROOM/large" | dd of="$SMALL/staging/piped" bs=64k status=none
    same_as_large "$SMALL/staging/piped"
    rm "$SMALL/staging/piped"
}

@test "three writers at once put more than memory holds, and it stays within its budget" {
    local name writers=() most
    for name in a b c; do
        cp "$ROOM/large" "$SMALL/staging/$name" &
        writers+=($!)
    done
    for name in "${writers[@]}"; do wait "$name"; done
    for name in a b c; do same_as_large "$SMALL/staging/$name"; done
    most=$(small_value memory used_bytes)
    ((most <= 70 << 20))
    rm "$SMALL"/staging/[abc]
}

@test "objects are spilled when memory is short, the rest stays, and all read the same" {
    local i
    for ((i = 0; i < 22; i++)); do
        { echo "$i"; head -c 45M "$ROOM/large"; } >"$MNT/staging/part-$i"
    done
    wait_until '(($(node objects disk) > 2))'
    (($(node objects memory) > 2))
    for ((i = 0; i < 22; i++)); do
        equals "$(sha256sum <"$MNT/staging/part-$i")" \
            "$({ echo "$i"; head -c 45M "$ROOM/large"; } | sha256sum)"
    done
    rm "$MNT"/staging/part-*
    wait_until '(($(node memory disk_used_bytes) == 0))'
}

@test "what was used least recently goes to disk when memory is short, and reads the same" {
    local i
    for i in 1 2; do cat "$ROOM/large"; done >"$MNT/staging/first"
    [[ $(attribute tier "$(realpath "$MNT/staging/first")") == memory ]] || skip "it began on disk"
    { cat "$ROOM/large" "$ROOM/large"; head -c 60M "$ROOM/large"; } >"$MNT/staging/second"
    wait_until '[[ $(attribute tier "$(realpath "$MNT/staging/first")") == disk ]]'
    (($(used_bytes) < 820 << 20))
    equals "$(sha256sum <"$MNT/staging/first")" "$(cat "$ROOM/large" "$ROOM/large" | sha256sum)"
    equals "$(sha256sum <"$MNT/staging/second")" \
        "$({ cat "$ROOM/large" "$ROOM/large"; head -c 60M "$ROOM/large"; } | sha256sum)"
    rm "$MNT/staging/first" "$MNT/staging/second"
}

@test "one file that begins in memory and outgrows it moves to disk while it is written" {
    [[ $MOBULA_TEST_SLOW -eq 1 ]] || skip "a sanitizer's server is slower than the writer"
    local i
    for ((i = 0; i < 7; i++)); do cat "$ROOM/large"; done >"$MNT/staging/outgrows"
    equals "$(sha256sum <"$MNT/staging/outgrows")" \
        "$(for ((i = 0; i < 7; i++)); do cat "$ROOM/large"; done | sha256sum)"
    equals "$(attribute tier "$(realpath "$MNT/staging/outgrows")")" disk
    rm "$MNT/staging/outgrows"
}

@test "a mapped reader reads what is on disk" {
    cp "$ROOM/large" "$SMALL/staging/mapped"
    within 30 readways mmap "$SMALL/staging/mapped" "$ROOM/mapped.copy"
    same_as_large "$ROOM/mapped.copy"
    rm "$SMALL/staging/mapped" "$ROOM/mapped.copy"
}

@test "a job prints more than memory holds" {
    printf '{"command": ["cat", "%s"]}' "$ROOM/large" >"$SMALL/run/print"
    same_as_large "$SMALL/run/print/result"
    rm "$SMALL/run/print"
}

@test "what is on disk is there after down and up, and is verified before it is read" {
    cp "$ROOM/large" "$SMALL/staging/kept"
    head -c 3M "$ROOM/large" >"$SMALL/staging/kept-in-memory"
    within 30 mobula down "$SMALL"
    up "$SMALL" "$SMALL_STATE" --memory 64M
    sed -n -E 's/^(keeper_)?pid //p' "$SMALL"/nodes/*/daemon >>"$ROOM/pids"
    same_as_large "$SMALL/staging/kept"
    equals "$(sha256sum <"$SMALL/staging/kept-in-memory")" "$(head -c 3M "$ROOM/large" | sha256sum)"
    rm "$SMALL/staging/kept" "$SMALL/staging/kept-in-memory"
}

@test "a byte that changes on disk gives EIO, names the object and its block, and is never read" {
    local place
    cp "$ROOM/large" "$SMALL/staging/flipped"
    same_as_large "$SMALL/staging/flipped"
    place=$(getfattr --only-values -n user.mobula.place "$SMALL/staging/flipped")
    wait_until '[[ $(small_value memory spilling_bytes) -eq 0 ]]'
    printf 'X%.0s' {1..64} | dd of="$place" bs=1 seek=$((77 << 20)) conv=notrunc status=none
    run cat "$SMALL/staging/flipped"
    ((status != 0))
    matches "$output" "Input/output error"
    matches "$(getfattr --only-values -n user.mobula.error "$SMALL/staging/flipped")" "block 77"
    equals "$(small_value memory damaged_objects)" 1
    rm "$SMALL/staging/flipped"
}

@test "a byte that changes on disk in what a job has printed is not read from its stdout either" {
    local place
    printf '{"command": ["cat", "%s"]}' "$ROOM/large" >"$SMALL/run/flipped"
    same_as_large "$SMALL/run/flipped/result"
    same_as_large "$SMALL/run/flipped/stdout"
    place=$(getfattr --only-values -n user.mobula.place "$SMALL/run/flipped/result")
    wait_until '[[ $(small_value memory spilling_bytes) -eq 0 ]]'
    printf 'X%.0s' {1..64} | dd of="$place" bs=1 seek=$((5 << 20)) conv=notrunc status=none
    run cmp "$SMALL/run/flipped/stdout" "$ROOM/large"
    ((status != 0))
    matches "$output" "Input/output error"
    rm "$SMALL/run/flipped"
}

@test "the server is killed while objects are spilled: none is lost" {
    local i
    for ((i = 0; i < 20; i++)); do
        { echo "$i"; head -c 6M "$ROOM/large"; } >"$SMALL/staging/killed-$i"
        ((i % 5)) || kill -KILL "$(small_value daemon pid)"
    done
    for ((i = 0; i < 20; i++)); do
        equals "$(sha256sum <"$SMALL/staging/killed-$i")" \
            "$({ echo "$i"; head -c 6M "$ROOM/large"; } | sha256sum)"
    done
    rm "$SMALL"/staging/killed-*
}

@test "df and status show memory and disk together" {
    (($(df --output=size -B1 "$SMALL" | tail -n 1) > 64 << 20))
    matches "$(mobula status "$SMALL")" "disk +.* of .* used"
}

@test "when the disk is full, too, the writer gets ENOSPC, all else is readable, and rm makes room" {
    is_root || skip "needs a filesystem of its own"
    local mnt=$ROOM/full disk=$ROOM/full-disk i round put first
    mkdir "$mnt" "$disk"
    mount -t tmpfs -o size=120M none "$disk"
    memory=64M up "$mnt" "$ROOM/full-state" --spill "$disk"
    sed -n -E 's/^(keeper_)?pid //p' "$mnt"/nodes/*/daemon >>"$ROOM/pids"
    for round in 1 2 3; do
        put=0
        for ((i = 0; i < 40; i++)); do
            { echo "$round-$i"; head -c $((2000000 + i * 150000)) "$ROOM/large"; } \
                >"$mnt/staging/full-$i" 2>"$BATS_TEST_TMPDIR/error" || break
            put=$((put + 1))
        done
        ((put > 10 && put < 40))
        # No less than before: what was removed is off the disk. (A sanitizer's server may be too slow
        # to spill all that there is room for.)
        ((put >= ${first:=$put} - 4 || MOBULA_TEST_SLOW > 1))
        matches "$(cat "$BATS_TEST_TMPDIR/error")" "No space left on device"
        for ((i = 0; i < put; i++)); do
            equals "$(sha256sum <"$mnt/staging/full-$i")" \
                "$({ echo "$round-$i"; head -c $((2000000 + i * 150000)) "$ROOM/large"; } | sha256sum)"
        done
        rm "$mnt"/staging/full-*
        wait_until '(($(sed -n "s/^disk_used_bytes //p" '"$mnt"'/nodes/*/memory) == 0))'
        equals "$(find "$disk/objects" -type f -size +0 | wc -l)" 0 "files left on disk"
    done
    within 30 mobula down "$mnt"
    umount "$disk"
}

# --- spill directories that explain themselves ---

# put_on_disk MNT: 16 objects of 8 MB in a memory of 64 MB, some of which are on disk after `down`.
put_on_disk() {
    local i
    for ((i = 0; i < 16; i++)); do
        { echo "$i"; head -c 8M "$ROOM/large"; } >"$1/staging/told-$i"
    done
    (cd "$1/staging" && sha256sum told-*) >"$ROOM/told.sum"
}

same_as_told() { (cd "$1/staging" && sha256sum --quiet -c "$ROOM/told.sum"); }

# The daemon that was refused before may not have ended yet.
up_told() {
    run up "$ROOM/told" "$ROOM/told-state" "$@"
    ((status != 75))
}

# refuses WORDS OPTION...: `up` of the mount `told` says so, and mounts nothing.
refuses() {
    local words=$1
    shift
    wait_until up_told "$@"
    equals "$status" 69
    matches "$output" "$words"
    run ! is_mounted "$ROOM/told"
}

comes_up() {
    wait_until up_told "$@"
    equals "$status" 0 "$output"
    sed -n -E 's/^(keeper_)?pid //p' "$ROOM"/told/nodes/*/daemon >>"$ROOM/pids"
}

@test "doctor --spill lists and verifies a spill directory, with its daemon and without" {
    local disk=$ROOM/listed-disk place id
    export memory=64M
    mkdir "$ROOM/told"
    comes_up --spill "$disk"
    put_on_disk "$ROOM/told"
    run -0 mobula doctor --spill "$disk"
    matches "$output" ' intact, 0 damaged, .* read'
    within 30 mobula down "$ROOM/told"
    run -0 mobula doctor --spill "$disk"
    equals "$(grep -c '^intact .* [0-9a-f]\{40\} ' <<<"$output")" 16
    matches "$output" '16 intact, 0 damaged, 0 unknown; 128\.0 MiB read'
    place=$(find "$disk/objects" -type f | sort | head -n 1)
    id=$(mobula doctor --spill "$disk" --json | jq -r '.files[0].id')
    printf 'X%.0s' {1..64} | dd of="$place" bs=1 seek=5000000 conv=notrunc status=none
    printf torn | setfattr -n user.mobula.object -v torn "$(find "$disk/objects" -type f | sort | sed -n 2p)"
    setfattr -x user.mobula.object "$(find "$disk/objects" -type f | sort | sed -n 3p)"
    truncate -s 5M "$(find "$disk/objects" -type f | sort | sed -n 4p)"
    cp -a "$(find "$disk/objects" -type f | sort | sed -n 5p)" "$disk/objects/00000000deadbeef"
    echo letter >"$disk/objects/letter"
    run -1 mobula doctor --spill "$disk"
    matches "$output" "damaged +$id .* ${place##*/}: its bytes are not those that were written"
    matches "$output" "damaged .*: its header \\(user.mobula.object\\) is torn"
    matches "$output" "damaged .*: it has 5242880 bytes, and should have 838861"
    matches "$output" "damaged .* 00000000deadbeef: its header is that of the file 0"
    matches "$output" "unknown .*: it has no header"
    matches "$output" "unknown .* letter: it is no file of mobula's"
    matches "$output" '12 intact, 4 damaged, 2 unknown'
    run -1 mobula doctor --spill "$disk" --json
    equals "$(jq -c '[.intact, .damaged, .unknown, (.files | length)]' <<<"$output")" '[12,4,2,18]'
    run -66 mobula doctor --spill "$ROOM/no-such"
    run -65 mobula doctor --spill "$ROOM"
    matches "$output" 'is no spill directory: it has no file mobula-spill'
    sed -i 's/version 1/version 9/' "$disk/mobula-spill"
    run -65 mobula doctor --spill "$disk"
    matches "$output" 'was made by another version of mobula'
    rm -rf "$disk" "$ROOM/told" "$ROOM/told-state"
}

@test "a spill directory that is missing keeps the daemon from starting, until it is there or given up" {
    local disk=$ROOM/told-disk other=$ROOM/told-other i
    export memory=64M
    mkdir "$ROOM/told"
    comes_up --spill "$disk"
    put_on_disk "$ROOM/told"
    within 30 mobula down "$ROOM/told"
    mv "$disk" "$other"
    refuses "16 objects are in the spill directory $disk, which is not there: mount its disk" --spill "$disk"
    gone "$disk"
    refuses "$disk, which is not there" --spill none
    mkdir "$disk"
    refuses "$disk, but another directory is in its place" --spill "$disk"
    equals "$(ls -A "$disk")" ""
    # It is recognised by its identity.
    comes_up --spill "$other"
    same_as_told "$ROOM/told"
    within 30 mobula down "$ROOM/told"
    refuses "$other, which is there, but is not used: add it to those of --spill" --spill "$disk"
    refuses "$other is in use and can't be given up" --spill "$other" --forget-spill "$other"
    # The disk was replaced.
    rm -rf "$other"
    comes_up --spill "$other" --forget-spill "$other"
    equals "$(ls "$ROOM/told/staging")" ""
    for ((i = 0; i < 16; i++)); do
        grep -q "lost: staging/told-$i " "$ROOM/told-state/log"
    done
    # That was once: a server that takes over does not give up the new one.
    put_on_disk "$ROOM/told"
    kill -KILL "$(sed -n 's/^pid //p' "$ROOM"/told/nodes/*/daemon)"
    same_as_told "$ROOM/told"
    within 30 mobula down "$ROOM/told"
    comes_up --spill "$other"
    same_as_told "$ROOM/told"
    rm "$ROOM"/told/staging/*
    within 30 mobula down "$ROOM/told"
    # One that holds nothing may go.
    rm -rf "$disk" "$other"
    comes_up
    within 30 mobula down "$ROOM/told"
    rm -rf "$ROOM/told" "$ROOM/told-state"
}
