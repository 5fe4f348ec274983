"""``mount.vdiskfs``: what mount(8) runs for ``mount -t vdiskfs POOL MOUNTPOINT -o ...`` and for lines of fstab.

    /srv/pool  /mnt/vdisks  vdiskfs  node=here,state=/var/lib/vdiskfs/here,nofail  0  0

``node=``, ``state=`` and ``listen=`` are those of ``vdiskfs mount``; words for others (``x-...``, ``user=...``) are left out.
"""

import sys

from tools import cli

DONE, WRONG_USAGE, MOUNT_FAILED = 0, 1, 32
"""Of mount(8)."""
_FOR_OTHERS = ("x-", "X-", "comment=", "user=", "uhelper=", "helper=")
_OURS = ("node", "state", "listen")
_FLAGS = "sfnvrw"


def translate(words: list[str]) -> tuple[list[str], bool]:
    """The arguments of ``vdiskfs`` for those of a mount helper, and whether it is to be done at all.

    Raises:
        ValueError: they are not a mount helper's; the message says why.
    """
    places, options, really = list[str](), list[str](), True
    remaining = iter(words)
    for word in remaining:
        if not word.startswith("-"):
            places.append(word)
        elif word in ("-o", "-t", "-N"):
            value = next(remaining, None)
            if value is None:
                raise ValueError(f"{word} needs a value")
            if word == "-N":
                raise ValueError("mounting in another namespace is not supported")
            options += value.split(",") if word == "-o" else []
        elif set(word[1:]) <= set(_FLAGS):
            really = really and "f" not in word
            options += ["ro"] if "r" in word else []
        else:
            raise ValueError(f"unknown argument {word}")
    if len(places) != 2:
        raise ValueError("usage: mount.vdiskfs POOL MOUNTPOINT [-o OPT,...]")
    command = ["mount"]
    kept = []
    for option in options:
        name, _, value = option.partition("=")
        if name in _OURS and value:
            command += [f"--{name}", value]
        elif option and not option.startswith(_FOR_OTHERS):
            kept.append(option)
    return [*command, *(["-o", ",".join(kept)] if kept else []), "--", *places], really


def main(argv: list[str] | None = None) -> int:
    """Mount as mount(8) asks; its exit code."""
    try:
        command, really = translate(sys.argv[1:] if argv is None else argv)
    except ValueError as problem:
        sys.stderr.write(f"mount.vdiskfs: {problem}\n")
        return WRONG_USAGE
    if not really:
        return DONE
    try:
        return DONE if cli.main(command) == cli.DONE else MOUNT_FAILED
    except SystemExit as ended:  # of argparse, which has said why
        return WRONG_USAGE if ended.code else DONE


if __name__ == "__main__":
    sys.exit(main())
