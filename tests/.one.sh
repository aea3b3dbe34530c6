#!/usr/bin/env bash
# Runs `make test`, or the target given, on each Python of RELEASES in a bare Debian. Needs root and debootstrap.
#
# A root is made once, in build/roots; remove it for a newer one. What a release printed lies beside it, in RELEASE.log.
# Variables of pip, certificates and proxies go along with the files they name. DEBOOTSTRAP_MIRROR is another mirror.
set -uo pipefail
cd "$(dirname "$0")/.."

RELEASES="sid"
VARIABLES=$(compgen -e | grep -iE '^(pip|ssl_cert)_|_proxy$')
target=${1:-test}

make_root() {
    [ -d "$root" ] && return
    rm -rf "$root.new"
    debootstrap --variant=minbase --include=ca-certificates,make,python3-venv "$release" "$root.new" ${DEBOOTSTRAP_MIRROR:-}
    mv "$root.new" "$root"
}

copy_in() {
    rm -rf "$root/edgellm"
    mkdir "$root/edgellm"
    git ls-files -z --cached --others --exclude-standard | tar -c --null -T - | tar -x -C "$root/edgellm"
    cp /etc/resolv.conf "$root/etc/resolv.conf"
    for name in $VARIABLES; do
        [ ! -f "${!name}" ] || install -D -m 644 "${!name}" "$root${!name}"
    done
}

run_in() {
    local environment=(HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin)
    for name in $VARIABLES; do
        environment+=("$name=${!name}")
    done
    # Mounts of a namespace of its own go with it, however this ends
    unshare --mount bash -ec '
        root=$1; shift
        for folder in proc sys dev; do mount --rbind "/$folder" "$root/$folder"; done
        exec env -i "$@"
    ' - "$root" "${environment[@]}" chroot "$root" make --no-print-directory -C /edgellm "$target"
}

failed=0
mkdir -p build/roots
for release in $RELEASES; do
    root=build/roots/$release log=build/roots/$release.log
    (set -e; make_root; copy_in; run_in) > "$log" 2>&1 < /dev/null
    [ $? = 0 ] && said=pass || said=FAIL failed=1
    echo "$said  $release  $(chroot "$root" python3 --version)  $(tail -n 1 "$log")"
done
exit $failed
