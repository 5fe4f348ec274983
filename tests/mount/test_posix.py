"""What suites such as pjdfstest ask of a filesystem, call by call and as other users: ours answers as an ordinary folder does.

Not asked, because Linux does not ask us: a chown to nobody (-1, -1), and a change by somebody outside the group of a file that
the group may not execute, leave set-id bits here; a truncation to the same size leaves the times.
"""

import os
import pathlib

import pytest

from tests.mount.posix_calls import run
from tests.mounted_pool import MountedPool

pytestmark = pytest.mark.root

LONG, TOO_LONG = "n" * 255, "n" * 256
PATH_TOO_LONG = "/".join(["p" * 200] * 21)

SCENARIOS = {
    "chmod": """
        create f 0644
        chmod f 04755
        stat f
        watch f chmod f 0600
        mkdir d 0755
        chmod d 01777
        stat d
        65534 chmod f 0777
        chown f 65534 65533
        65534 chmod f 0642
        stat f
        65534:65534 chmod f 02755
        stat f
        65534:65533 chmod f 02755
        stat f
        65534:65532,65533 chmod f 02700
        stat f
        symlink l f
        chmod l 0611
        stat f
        stat l
        chmod none 0644
        chmod f/x 0644
        symlink a b
        symlink b a
        chmod a 0644
        chmod {too_long} 0644
        chmod {path_too_long} 0644
        65534 chmod d 0700
        mkdir shut 0700
        create shut/f 0644
        65534 chmod shut/f 0600""",
    "chown": """
        create f 06755
        watch f chown f 65534 65533
        stat f
        chmod f 06755
        65534:65533 chown f 65534 65532
        65534:65533,65532 chown f 65534 65532
        stat f
        65534:65533 chown f 65533 -1
        65533 chown f 65533 65533
        chmod f 02644
        chown f 0 0
        stat f
        mkdir d 06755
        chmod d 06755
        chown d 65534 65533
        stat d
        symlink l f
        lchown l 65534 65533
        stat l
        stat f
        chown l 7 8
        stat f
        chown none 0 0
        chown f/x 0 0
        symlink a b
        symlink b a
        chown a 0 0
        lchown a 5 5
        stat a
        chown {too_long} 0 0""",
    "open": """
        watch . create f 0644
        open f CREAT|EXCL|RDWR
        open f CREAT|RDWR
        open none RDONLY
        open none/x CREAT|RDWR
        open f/x RDONLY
        open f/x CREAT|RDWR
        open f DIRECTORY|RDONLY
        mkdir d 0755
        open d RDONLY
        open d WRONLY
        open d RDWR
        open d RDONLY|TRUNC
        open d CREAT|RDONLY
        open d CREAT|EXCL|RDONLY
        open d DIRECTORY|RDONLY
        symlink l f
        open l RDONLY|NOFOLLOW
        open l CREAT|EXCL|RDWR
        open l RDWR
        symlink dangling nothing
        open dangling RDWR
        open dangling CREAT|EXCL|RDWR
        open dangling CREAT|RDWR 0640
        stat nothing
        symlink a b
        symlink b a
        open a RDONLY
        open a CREAT|RDWR
        open {long} CREAT|RDWR
        open {too_long} CREAT|RDWR
        open {too_long} RDONLY
        open {path_too_long} RDONLY
        65534 open f RDONLY
        65534 open f WRONLY
        65534 open f RDONLY|TRUNC
        65534 open d/x CREAT|RDWR
        chmod d 0777
        65534 open d/x CREAT|RDWR 0400
        65534 open d/x WRONLY
        65534 open d/y CREAT|RDWR 0000
        65534 open d/y RDONLY
        stat d/x
        chmod d 0666
        65534 open d/x RDONLY
        65534 list d
        chmod d 0711
        65534 open d/x RDONLY
        65534 list d
        write f WRONLY 100
        watch f open f WRONLY|TRUNC
        stat f
        watch f open f RDWR
        watch f open f CREAT|RDWR
        chmod f 04777
        65534 open f WRONLY|TRUNC
        stat f
        65534 open f RDONLY|NOATIME
        open f RDWR|PATH""",
    "inherited groups and masks": """
        mkdir d 0755
        chown d 65534 65533
        chmod d 02777
        65532 create d/f 0666
        stat d/f
        65532 create d/g 02755
        stat d/g
        65532 mkdir d/sub 0777
        stat d/sub
        65532 symlink d/l f
        stat d/l
        create d/root 02775
        stat d/root
        chmod d 0777
        65532 create d/h 06777
        stat d/h""",
    "mkdir and rmdir": """
        watch . mkdir d 0751
        stat d
        stat .
        mkdir d 0755
        create f 0644
        mkdir f 0755
        mkdir f/x 0755
        mkdir none/x 0755
        mkdir d/ 0755
        mkdir e/ 0755
        symlink l d
        mkdir l 0755
        mkdir l/in 0755
        symlink dangling nothing
        mkdir dangling 0755
        mkdir {too_long} 0755
        mkdir {long} 0755
        rmdir d
        rmdir f
        rmdir l
        rmdir none
        rmdir f/x
        rmdir d/in/.
        rmdir d/in/..
        watch d rmdir d/in
        watch . rmdir d
        rmdir e/
        65534 mkdir x 0755
        mkdir p 0755
        mkdir p/q 0777
        65534 rmdir p/q
        chmod p 01777
        65534 rmdir p/q
        65534 mkdir p/mine 0755
        65533 rmdir p/mine
        65534 rmdir p/mine
        rmdir {long}
        unlink p
        stat .""",
    "unlink": """
        create f 0644
        watch . unlink f
        unlink f
        mkdir d 0755
        unlink d
        unlink d/none
        create f 0644
        unlink f/x
        unlink f/
        symlink l f
        unlink l
        stat f
        symlink dl d
        unlink dl/
        unlink dl
        65534 unlink f
        chmod d 0777
        create d/f 0644
        65534 unlink d/f
        chmod d 01777
        create d/f 0666
        65534 unlink d/f
        65534 create d/g 0644
        65533 unlink d/g
        65534 unlink d/g
        chown d 65533 65533
        65534 create d/h 0644
        65533 unlink d/h
        unlink {too_long}""",
    "symlink": """
        watch . symlink l target
        stat l
        readlink l
        symlink l other
        create f 0644
        symlink f other
        symlink f/x y
        symlink none/x y
        symlink {too_long} y
        symlink {long} y
        symlink empty ''
        symlink long {target}
        readlink long
        symlink toolong {target}x
        readlink f
        readlink none
        readlink .
        65534 symlink m y
        utimens l 1000000001 2000000002 256
        times l""",
    "rename": """
        create f 0644
        watch . rename f g
        rename f h
        mkdir a 0755
        mkdir a/b 0755
        mkdir c 0755
        watch a,c rename a/b c/b
        stat a
        stat c
        rename c c/b/x
        rename c c/x
        rename c/b c
        rename c a
        mkdir c 0755
        create c/f 0644
        rename a c
        rename c/f a
        rename a c/f
        rename g g
        create h 0644
        rename g h
        stat h
        rename h a/none/x
        rename none x
        rename h h/x
        rename c/f/x y
        rename h {too_long}
        rename {too_long} h
        rename h {long}
        rename {long} h
        symlink l h
        rename l m
        stat m
        readlink m
        rename h m
        stat m
        rename a/. x
        rename a/.. x
        rename m/ x
        rename a/ z/
        mkdir y 0755
        rename m y 2
        stat y
        rename y m 1
        rename y none 2
        rename m y 3
        rename m y 8
        65534 rename y yy
        mkdir s 01777
        chmod s 01777
        65534 create s/mine 0644
        65533 create s/other 0644
        65533 rename s/mine s/taken
        65533 rename s/other s/mine
        65534 rename s/mine s/other
        65534 rename s/mine s/moved
        65533 rename s/moved s/other 2
        mkdir t 0777
        chmod t 0777
        65534 mkdir t/d 0755
        65533 rename t/d s/d
        65533 rename t/d t/e
        65534 rename t/e s/e
        65534 rename s/e t/e
        chmod t/e 0555
        65534 rename t/e s/e
        65533 rename s/e t/e""",
    "truncate": """
        create f 0644
        watch f truncate f 123
        stat f
        watch f truncate f 0
        ftruncate f RDWR 77
        stat f
        ftruncate f RDONLY 5
        truncate f -1
        ftruncate f RDWR -1
        mkdir d 0755
        truncate d 0
        truncate none 0
        truncate f/x 0
        symlink l f
        truncate l 9
        stat f
        symlink a b
        symlink b a
        truncate a 0
        truncate {too_long} 0
        65534 truncate f 0
        chmod f 06777
        65534 truncate f 5
        stat f
        chmod f 06777
        65534 ftruncate f RDWR 6
        stat f
        chmod f 06777
        truncate f 7
        stat f""",
    "writing": """
        create f 0777
        watch f write f WRONLY 10
        watch f write f WRONLY 0
        write f RDONLY 1
        write f WRONLY|APPEND 5
        stat f
        write f WRONLY|APPEND 5 0
        stat f
        chmod f 06777
        write f WRONLY 1
        stat f
        65534 write f WRONLY 1
        stat f
        chmod f 06777
        65534 fallocate f WRONLY 0 0 9000
        stat f
        watch f fallocate f WRONLY 3 0 4096
        fallocate f RDONLY 0 0 10
        fallocate f WRONLY 0 0 0
        fallocate f WRONLY 0 -1 10
        fallocate f WRONLY 2 0 10
        fallocate f WRONLY 64 0 10
        fallocate f WRONLY 1 0 90000
        stat f
        fallocate f WRONLY 16 0 90000
        stat f
        chmod f 06777
        create g 0777
        chmod g 06777
        65534 copy f g 5000
        stat g
        copy f g 5000
        65534 copy g f 10
        stat f
        read f 3
        read . 3""",
    "times": """
        create f 0644
        utimens f 1000000000000000001 999999999999999999
        times f
        utimens f omit 5
        times f
        utimens f 6 omit
        times f
        watch f utimens f omit omit
        watch f utimens f now now
        utimens f now 7
        times f
        utimens f -1 -1500000000
        times f
        utimens f 4294967296123456789 8589934592123456789
        times f
        65534 utimens f 1 1
        65534 utimens f now now
        65534 utimens f now omit
        65534 utimens f omit omit
        chmod f 0666
        65534 utimens f now now
        65534 utimens f 1 1
        65534 utimens f now omit
        chown f 65534 65534
        chmod f 0444
        65534 utimens f now now
        65534 utimens f 1 1
        times f
        mkdir d 0755
        utimens d 11 12
        times d
        symlink l f
        utimens l 21 22 256
        times l
        times f
        utimens l 23 24
        times f
        utimens none 1 1
        utimens f/x 1 1
        utimens f 1 2
        chmod f 0600
        times f
        rename f g
        times g""",
    "access": """
        create f 0644
        access f 1
        access f 6
        65534 access f 4
        65534 access f 2
        65534 access f 1
        chmod f 0100
        access f 1
        mkdir d 0000
        access d 7
        65534 access d 1
        access none 0
        65534 list d""",
    "extended attributes": """
        create f 0644
        watch f setxattr f user.a one
        getxattr f user.a
        setxattr f user.a two 1
        setxattr f user.b two 2
        setxattr f user.a '' 2
        getxattr f user.a
        listxattr f
        watch f removexattr f user.a
        removexattr f user.a
        getxattr f user.a
        setxattr f user. x
        setxattr f nonsense x
        setxattr f user.{too_long} x
        setxattr f trusted.x root
        65534 getxattr f trusted.x
        65534 setxattr f trusted.y x
        65534 listxattr f
        65534 setxattr f user.a x
        setxattr f user.a x
        65534 getxattr f user.a
        chmod f 0600
        65534 getxattr f user.a
        65534 removexattr f user.a
        mkdir d 01777
        chmod d 01777
        65534 setxattr d user.a x
        setxattr d user.a x
        symlink l f
        setxattr l user.a x
        getxattr l user.a
        setxattr l trusted.a x
        getxattr none user.a
        getxattr f/x user.a""",
    "names": """
        create 'with blank' 0644
        create ünïcödé 0644
        create .hidden 0644
        create ... 0644
        list .
        stat .
        stat ./.
        stat ../none
        mkdir d 0755
        stat d/.
        stat d/../d
        stat d/../ünïcödé
        stat ünïcödé/.
        stat ünïcödé/..
        create d/./x 0644
        unlink d/../d/x
        rmdir d/../d""",
}

NOT_OFFERED = {
    "link f g": "EPERM",
    "link none g": "ENOENT",
    "link d g": "EPERM",
    "mkfifo p 0644": "EPERM",
    "mknod p CHR": "EPERM",
    "mknod p BLK": "EPERM",
    "mknod p SOCK": "EPERM",
    "bind p": "EPERM",
    "mkfifo f 0644": "EEXIST",
    "open d RDWR|TMPFILE|DIRECTORY": "ENOTSUP",
    "rename f g 4": "EINVAL",
    "fallocate f RDWR 8 0 4096": "ENOTSUP",
    "fallocate f RDWR 32 0 4096": "ENOTSUP",
    "reflink g f": "ENOTSUP",
    "getxattr f system.posix_acl_access": "ENODATA",
    "truncate f 4611686018427387904": "EFBIG",
    "mkdir ../.snapshots 0755": "EEXIST",
    "create ../.snapshots/x 0644": "EROFS",
}
"""What this filesystem does not have, and how it says so."""


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> MountedPool:  # type: ignore[misc]
    pool = MountedPool(tmp_path_factory.mktemp("posix"))
    try:
        pool.run("format", pool.pool)
        pool.mount()
        yield pool
    finally:
        pool.tear_down()
    assert pool.stray_errors() == []


@pytest.fixture
def folders(once: MountedPool, tmp_path: pathlib.Path, request: pytest.FixtureRequest) -> list[pathlib.Path]:
    """A new one of ours, and an ordinary one, that everybody may enter."""
    name = f"folder{abs(hash(request.node.name))}"
    found = [once.mountpoint / name, tmp_path / name]
    for folder in found:
        folder.mkdir(mode=0o755)
        above = folder.parent
        while above != pathlib.Path("/"):
            if not above.stat().st_mode & 0o001:
                above.chmod(above.stat().st_mode | 0o001)
            above = above.parent
    return found


@pytest.mark.parametrize("name", SCENARIOS)
def test_calls_answer_as_in_an_ordinary_folder(folders: list[pathlib.Path], name: str) -> None:
    ours, ordinary = folders
    os.umask(0o022)
    differences = []
    for written in SCENARIOS[name].strip().splitlines():
        line = written.strip().format(
            long=LONG, too_long=TOO_LONG, path_too_long=PATH_TOO_LONG, target="t/" * 2047
        )
        outcomes = run(ours, line), run(ordinary, line)
        if outcomes[0] != outcomes[1]:
            differences.append((written.strip(), *(outcome[:100] for outcome in outcomes)))
    assert not differences, "\n".join(": ".join(each) for each in differences)


@pytest.mark.parametrize("line", NOT_OFFERED)
def test_what_is_not_offered_is_refused_with_the_right_error(folders: list[pathlib.Path], line: str) -> None:
    for made in ("create f 0644", "write f WRONLY 10000", "mkdir d 0755"):
        run(folders[0], made)
    assert run(folders[0], line) == NOT_OFFERED[line]
