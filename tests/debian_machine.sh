# debian_machine.sh, to be sourced: a Debian 12 in a folder, made by debootstrap once and kept as a tarball for the next time.

# make_machine FOLDER TARBALL PACKAGES: the machine anew, with the network of this one.
make_machine() {
    mkdir -p "$(dirname "$2")"
    rm -rf --one-file-system "$1"
    mkdir "$1"
    if [ ! -e "$2" ]; then
        echo "making a Debian 12 with debootstrap"
        debootstrap --variant=minbase --include="$3" bookworm "$1" >"$2.log" 2>&1 || {
            tail -n 20 "$2.log" >&2
            exit 1
        }
        tar -C "$1" -cf "$2.new" .
        mv "$2.new" "$2"
    else
        tar -C "$1" -xf "$2"
    fi
    # The network is this machine's: its resolver, its proxy's certificates, its package index.
    cp -L /etc/resolv.conf /etc/hosts "$1/etc/"
    cp -L /etc/ssl/certs/ca-certificates.crt "$1/etc/ssl/certs/" || true
    for file in /etc/pip.conf /etc/apt/apt.conf.d/*proxy*; do
        if [ -e "$file" ]; then cp -L "$file" "$1$file"; fi
    done
}
