#!/usr/bin/env bats
# Faults of the disk that objects are spilled to: full, gone, read-only, stalled, broken. Nothing that
# was committed reads otherwise than it was written, whoever can't go on gets an error that says why,
# and when the disk is well again, so is the mount.

# shellcheck disable=SC2016

load helper

setup_file() {
    start_mount
    head -c 24M /dev/urandom >"$ROOM/source"
}

# Whatever a test did to its disk, it must let go of everybody before the mounts are taken down.
teardown() {
    thaw
    end_test
    drop_disk
}

thaw() {
    within 5 fsfreeze -u "$ROOM/disk" 2>/dev/null || true
    kill -CONT "${stalling_pid:-}" 2>/dev/null || true
}

# new_disk MIB [FOLDER]: an ext4 of that size at $ROOM/disk, its image in FOLDER.
new_disk() {
    is_root || skip "needs root, for a filesystem of its own"
    mkdir -p "$ROOM/disk" "$ROOM/faulty"
    truncate -s "$1M" "${2:-$ROOM}/image"
    mkfs.ext4 -q -m 0 -O ^has_journal -E lazy_itable_init=0 "${2:-$ROOM}/image" || skip "needs mkfs.ext4"
    mount -o loop "${2:-$ROOM}/image" "$ROOM/disk" || skip "needs a loop device"
}

# new_stalling_disk MIB: the same, of a disk that doesn't answer while the process $stalling_pid is
# stopped.
new_stalling_disk() {
    is_root || skip "needs root, for a filesystem of its own"
    mkdir -p "$ROOM/disk" "$ROOM/stalling" "$ROOM/faulty"
    truncate -s "$1M" "$ROOM/image"
    mkfs.ext4 -q -m 0 -E lazy_itable_init=0 "$ROOM/image" || skip "needs mkfs.ext4"
    stallimage "$ROOM/image" "$ROOM/stalling" 3>&- 4>&- &
    stalling_pid=$!
    wait_until '[[ -e $ROOM/stalling/image ]]'
    mount -o loop "$ROOM/stalling/image" "$ROOM/disk" || skip "needs a loop device"
    mkdir -p "$ROOM/control"
    mount -t fusectl fusectl "$ROOM/control"
}

drop_disk() {
    local place
    for place in "$ROOM/disk" "$ROOM/images" "$ROOM/stalling" "$ROOM/control"; do
        if mountpoint -q "$place"; then
            wait_until -t 5 within 5 umount "$place" 2>/dev/null || umount -l "$place"
        fi
    done
    if [[ -n ${stalling_pid:-} ]]; then # a namespace that was made meanwhile may keep its mount
        kill -KILL "$stalling_pid" 2>/dev/null || true
        wait_until pid_gone "$stalling_pid"
        stalling_pid=
    fi
    rm -f "$ROOM/image"
}

# up_on MEMORY [OPTION...]: a mount at $ROOM/faulty that spills to $ROOM/disk.
up_on() {
    local size=$1
    shift
    rm -rf --one-file-system "$ROOM/faulty-state"
    memory=$size up "$ROOM/faulty" "$ROOM/faulty-state" --spill "$ROOM/disk" "$@"
    remember_daemon "$ROOM/faulty"
    server=$(value daemon pid)
}

down_again() {
    equals "$(value daemon pid)" "$server" "the server's pid"
    within 20 mobula down "$ROOM/faulty"
    drop_disk
}

value() { sed -n "s/^$2 //p" "$ROOM"/faulty/nodes/*/"$1"; }

# piece NUMBER BYTES: what staging/NUMBER holds.
piece() { { echo "$1"; head -c "$2" "$ROOM/source"; }; }
put_piece() { piece "$1" "$2" >"$ROOM/faulty/staging/$1"; }

is_piece() { # else: why
    equals "$(digest "$ROOM/faulty/staging/$1")" "$(piece "$1" "$2" | sha256sum | cut -d" " -f1)" || { why "$1"; return 1; }
}
tier() { within 10 getfattr --only-values -n user.mobula.tier "$ROOM/faulty/staging/$1" 2>/dev/null; }
why() { within 10 getfattr --only-values -n user.mobula.error "$ROOM/faulty/staging/$1"; }

# Writes files of random sizes until one is refused, compares all that there are, removes half of
# them, and so on. Fails at the first thing that is wrong, and says what.
fill_and_free() { # ROUNDS SEED
    within 28 bash -c '
        cd "$ROOM/faulty/staging"
        RANDOM=$2 next=0 sums=$ROOM/sums
        : >"$sums"
        for ((round = 1; round <= $1; round++)); do
            put=0
            while true; do
                size=$((200000 + RANDOM * 64)) name=f$((next++)) began=${EPOCHREALTIME/./}
                sum=$({ echo "$name"; head -c $size "$ROOM/source"; } | tee "$name" 2>/dev/null |
                    sha256sum; ((!PIPESTATUS[1])))
                refused=$? took=$(((${EPOCHREALTIME/./} - began) / 1000))
                free=$(sed -n "s/^disk_free_bytes //p" ../nodes/*/memory)
                if ((refused)); then break; fi
                echo "${sum%% *}  $name" >>"$sums"
                put=$((put + 1))
            done
            rm "$name"
            echo "round $round: $put put, $size bytes refused after $took ms, $free bytes free"
            ((put > 0 && took < 1000 * MOBULA_TEST_SLOW && free < 12000000)) || exit 1
            sha256sum -c --quiet "$sums" || exit 1
            gone=()
            while read -r sum name; do
                if ((RANDOM % 2)); then gone+=("$name"); else echo "$sum  $name"; fi
            done <"$sums" >"$sums.left"
            rm -f "${gone[@]}"
            mv "$sums.left" "$sums"
        done
        rm -f f*' - "$@"
}

@test "a disk that is full and freed, twenty times: ENOSPC at once, all else reads the same, writes go on" {
    local seed=$((RANDOM * 32768 + RANDOM))
    echo "seed $seed"
    new_disk 24
    up_on 20M
    run fill_and_free 20 "$seed"
    echo "$output"
    ((status == 0))
    wait_until '(($(value memory disk_used_bytes) == 0))'
    equals "$(find "$ROOM/disk/objects" -type f -size +0 | wc -l)" 0 "files left on disk"
    down_again
}

@test "the spill directory is removed: readers of what is gone get EIO and why, and spilling goes on" {
    local i
    new_disk 60
    up_on 32M
    for ((i = 0; i < 12; i++)); do put_piece "$i" 4000000; done
    wait_until '[[ $(value memory spilling_bytes) -eq 0 && $(value objects disk) -gt 1 ]]'
    rm -rf "$ROOM/disk/objects"
    for ((i = 0; i < 12; i++)); do
        if within 10 cat "$ROOM/faulty/staging/$i" >/dev/null 2>"$BATS_TEST_TMPDIR/error"; then
            is_piece "$i" 4000000
        else
            matches "$(cat "$BATS_TEST_TMPDIR/error")" "Input/output error"
            matches "$(why "$i")" "$ROOM/disk/objects/.* can't be read: No such file"
            lost=1
        fi
    done
    ((lost))
    rm "$ROOM"/faulty/staging/*
    for ((i = 20; i < 30; i++)); do put_piece "$i" 4000000; done
    wait_until '(($(value objects disk) > 1))'
    for ((i = 20; i < 30; i++)); do is_piece "$i" 4000000; done
    down_again
}

@test "the spill directory becomes read-only: writers stay in memory, and spilling goes on afterwards" {
    local i put
    new_disk 60
    up_on 32M
    for ((i = 0; i < 9; i++)); do put_piece "$i" 4000000; done
    wait_until '[[ $(value memory spilling_bytes) -eq 0 && $(value objects disk) -gt 1 ]]'
    wait_until within 5 mount -o remount,ro "$ROOM/disk" 2>/dev/null
    for ((put = 9; put < 30; put++)); do
        put_piece "$put" 2000000 2>"$BATS_TEST_TMPDIR/error" || break
    done
    ((put < 30))
    matches "$(cat "$BATS_TEST_TMPDIR/error")" "No space left on device|Read-only file system"
    rm -f "$ROOM/faulty/staging/$put"
    for ((i = 0; i < 9; i++)); do is_piece "$i" 4000000; done
    for ((i = 9; i < put; i++)); do is_piece "$i" 2000000; done
    rm "$ROOM/faulty/staging/"[0-3] # some of these are on disk, and can't be removed from it now
    within 5 mount -o remount,rw "$ROOM/disk"
    for ((i = put; i < put + 6; i++)); do
        wait_until 'rm -f "$ROOM/faulty/staging/$i"; put_piece "$i" 2000000 2>/dev/null' # once it is writable
    done
    for ((i = 4; i < 9; i++)); do is_piece "$i" 4000000; done
    for ((i = 9; i < put + 6; i++)); do is_piece "$i" 2000000; done
    rm "$ROOM"/faulty/staging/*
    wait_until '(($(value memory disk_used_bytes) == 0))'
    equals "$(find "$ROOM/disk/objects" -type f -size +0 | wc -l)" 0 "files left on disk"
    down_again
}

# at_once COMMAND...: it takes less than two seconds, of which the daemon may wait half a one.
at_once() {
    if ! within 2 "$@"; then
        echo "not within two seconds: $*"
        return 1
    fi
}
export -f put_piece piece

@test "a disk that stalls: small puts and gets, rm, df and status are answered, and nothing is lost" {
    local i
    new_disk 400
    up_on 48M
    for ((i = 0; i < 5; i++)); do put_piece "$i" 8000000; done
    put_piece small 1000
    wait_until '(($(value objects disk) > 1))'
    within 10 fsfreeze -f "$ROOM/disk"
    # One who waits for the disk, with more than memory holds.
    background bash -c 'cat "$ROOM/source" "$ROOM/source" "$ROOM/source" >"$ROOM/faulty/staging/waits"'
    for ((i = 0; i < 8; i++)); do
        at_once bash -c 'put_piece "quick-$1" 1000' - "$i"
        at_once bash -c 'cmp <(piece small 1000) "$ROOM/faulty/staging/small"'
        at_once bash -c 'ls "$ROOM/faulty/objects" && df "$ROOM/faulty"' >/dev/null
        at_once mobula status "$ROOM/faulty" >/dev/null
    done
    at_once rm "$ROOM/faulty/staging/0" "$ROOM/faulty/staging/1"
    for ((i = 8; i < 12; i++)); do at_once bash -c 'put_piece "quick-$1" 1000' - "$i"; done
    within 5 fsfreeze -u "$ROOM/disk"
    await
    for ((i = 2; i < 5; i++)); do is_piece "$i" 8000000; done
    for ((i = 0; i < 12; i++)); do is_piece "quick-$i" 1000; done
    equals "$(digest "$ROOM/faulty/staging/waits")" \
        "$(cat "$ROOM/source" "$ROOM/source" "$ROOM/source" | sha256sum | cut -d" " -f1)"
    put_piece after 8000000
    is_piece after 8000000
    rm "$ROOM"/faulty/staging/*
    wait_until '(($(value memory disk_used_bytes) == 0))'
    down_again
}

# Ten, which is more than the daemon has threads of any kind.
others_go_on_while_writers_wait() { # OPTION...
    local i
    new_disk 400
    up_on 48M "$@"
    put_piece small 1000
    for ((i = 0; i < 4; i++)); do put_piece "$i" 8000000; done
    within 10 fsfreeze -f "$ROOM/disk"
    background bash -c 'for ((i = 10; i < 20; i++)); do put_piece "$i" 8000000 & done; wait'
    wait_until '(($(ls "$ROOM/faulty/staging" | wc -l) == 15))'
    # Memory is as full as it gets with large files.
    wait_until '(($(value memory used_bytes) >= 46000000))'
    for ((i = 0; i < 8; i++)); do
        at_once bash -c 'put_piece "quick-$1" 1000' - "$i"
        at_once bash -c 'cmp <(piece small 1000) "$ROOM/faulty/staging/small"'
        at_once bash -c 'ls -l "$ROOM/faulty/staging" && df "$ROOM/faulty"' >/dev/null
        at_once mobula status "$ROOM/faulty" >/dev/null
        at_once bash -c 'cmp <(piece "quick-$1" 1000) "$ROOM/faulty/staging/quick-$1"' - "$i"
    done
    within 5 fsfreeze -u "$ROOM/disk"
    await
    for ((i = 0; i < 4; i++)); do is_piece "$i" 8000000; done
    for ((i = 10; i < 20; i++)); do is_piece "$i" 8000000; done
    for ((i = 0; i < 8; i++)); do is_piece "quick-$i" 1000; done
    rm "$ROOM"/faulty/staging/*
    wait_until '(($(value memory disk_used_bytes) == 0))'
    down_again
}

@test "a disk that stalls, without passthrough: who writes to it waits, all others are answered" {
    others_go_on_while_writers_wait --no-passthrough
}

@test "a disk that stalls, with a key: who writes to it waits, all others are answered" {
    head -c 32 /dev/urandom >"$ROOM/key"
    others_go_on_while_writers_wait --spill-key "$ROOM/key"
}

# More than there is memory.
twice_written() { piece written 20000000; piece written 20000000; }
export -f twice_written

# Four readers of objects, and one of a file that is being written, have all threads that serve wait
# for the disk, if they would.
readers_wait_alone() { # OPTION...
    local i fds=() fd writer connection
    new_stalling_disk 400
    up_on 24M "$@"
    # shellcheck disable=SC2034 # it is waited for
    connection=$ROOM/control/$(mountpoint -d "$ROOM/faulty" | cut -d: -f2)
    for ((i = 0; i < 4; i++)); do put_piece "$i" 18000000; done
    put_piece small 90000
    exec {writer}>"$ROOM/faulty/staging/written"
    twice_written >&"$writer"
    for ((i = 0; i < 4; i++)); do
        equals "$(tier "$i")" disk # they don't fit in what may be filled of the memory
        exec {fd}<"$ROOM/faulty/staging/$i"
        fds+=("$fd")
    done
    sync -f "$ROOM/disk"
    for i in "$ROOM"/disk/objects/*; do dd if="$i" iflag=nocache count=0 status=none; done
    kill -STOP "$stalling_pid"
    for ((i = 0; i < 4; i++)); do
        background bash -c 'cmp <(piece "$1" 18000000) <(cat <&"$2")' - "$i" "${fds[i]}"
    done
    background bash -c 'cmp <(twice_written) "$ROOM/faulty/staging/written"'
    wait_until '(($(cat "$connection/waiting") >= 5))'
    for ((i = 0; i < 4; i++)); do
        at_once bash -c 'put_piece "quick-$1" 1000' - "$i"
        at_once bash -c 'cmp <(piece small 90000) "$ROOM/faulty/staging/small"'
        at_once bash -c 'ls -lL "$ROOM/faulty/objects" "$ROOM/faulty/staging" && df "$ROOM/faulty"' >/dev/null
        at_once mobula status "$ROOM/faulty" >/dev/null
        at_once mobula stat --mount "$ROOM/faulty" small >/dev/null
    done
    kill -CONT "$stalling_pid"
    await
    for fd in "${fds[@]}" "$writer"; do exec {fd}>&-; done
    equals "$(digest "$ROOM/faulty/staging/written")" "$(twice_written | sha256sum | cut -d' ' -f1)"
    rm "$ROOM"/faulty/staging/*
    down_again
}

@test "a disk that stalls: who reads from it waits alone, without passthrough" {
    readers_wait_alone --no-passthrough
}

@test "a disk that stalls: who reads from it waits alone, with a key" {
    head -c 32 /dev/urandom >"$ROOM/key"
    chmod 600 "$ROOM/key"
    readers_wait_alone --spill-key "$ROOM/key"
}

@test "a disk that can't be read: EIO, which names the object, never wrong bytes" {
    local i damaged=0 lost
    new_disk 60
    up_on 32M
    for ((i = 0; i < 10; i++)); do put_piece "$i" 4000000; done
    wait_until '[[ $(value memory spilling_bytes) -eq 0 && $(value objects disk) -gt 1 ]]'
    sync -f "$ROOM/disk"
    truncate -s 6M "$ROOM/image" # the device keeps its size: what is behind gives EIO
    for ((i = 0; i < 10; i++)); do
        if within 10 cat "$ROOM/faulty/staging/$i" >/dev/null 2>"$BATS_TEST_TMPDIR/error"; then
            is_piece "$i" 4000000
        else
            matches "$(cat "$BATS_TEST_TMPDIR/error")" "Input/output error"
            matches "$(why "$i")" "$ROOM/disk/objects/.* can't be read: Input/output error"
            lost=$(readlink "$ROOM/faulty/staging/$i")
            grep -q "objects/${lost##*/} is damaged: $ROOM/disk/objects/" "$ROOM/faulty-state/log"
            damaged=$((damaged + 1))
        fi
    done
    ((damaged > 0))
    equals "$(value memory damaged_objects)" "$damaged"
    rm "$ROOM"/faulty/staging/*
    put_piece after 1000000
    is_piece after 1000000
    down_again
}

@test "a disk that can't be written: objects stay in memory and read the same" {
    local i put
    is_root || skip "needs root, for a filesystem of its own"
    mkdir "$ROOM/images"
    mount -t tmpfs -o size=30M none "$ROOM/images"
    new_disk 60 "$ROOM/images"
    up_on 32M
    sync -f "$ROOM/disk"
    # From now on the image can't grow: the filesystem's own blocks are there, others give EIO.
    head -c 30M /dev/zero >"$ROOM/images/fill" 2>/dev/null || true
    for ((put = 0; put < 40; put++)); do
        put_piece "$put" 1500000 2>"$BATS_TEST_TMPDIR/error" || break
    done
    ((put > 5 && put < 40))
    matches "$(cat "$BATS_TEST_TMPDIR/error")" "No space left on device"
    wait_until '(($(value memory spill_errors) > 0))'
    rm -f "$ROOM/faulty/staging/$put"
    for ((i = 0; i < put; i++)); do is_piece "$i" 1500000; done
    equals "$(value objects memory)" "$put"
    matches "$(cat "$ROOM/faulty-state/log")" "can't be spilled: (Input/output error|No space left)"
    rm "$ROOM"/faulty/staging/*
    down_again
}
